"""The sampling parameters of a request: names, bounds, defaults, and where the sampler finds them.

Both contracts have a message `SamplingParams` with these fields. A parameter is described here once
for the router, the engine and its sampler. Only the kernels that use it need to know more.
"""

import dataclasses
import math
import struct
from array import array
from collections.abc import Collection, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

from protos.wire.limits import MAX_SEED, MAX_STOP_TOKEN_IDS

if TYPE_CHECKING:
    from google.protobuf.message import Message

_FLOAT = "f4x"
_INT = "q"
"""A column of a record, in the notation of `struct`: eight bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scalar:
    """What is known of a number that this version's engines support.

    Attributes:
        low: The smallest value.
        high: The largest value; infinity means no bound.
        default: The value of an unset parameter in a record.
        column: The notation of its column in a record, or empty if the sampler does not need it.
    """

    low: float
    high: float = math.inf
    default: float = 0
    column: str = ""

    @property
    def bounds(self) -> str:
        """The bounds as an error shows them."""
        return f"{self.low} and more" if self.high == math.inf else f"{self.low} to {self.high}"


class LogitBias(NamedTuple):
    """Adds `bias` to one token's logit."""

    token_id: int
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a request ends; None is unset: the engine's default.

    A parameter without bounds here is passed on by the router and refused by this version's
    engines.
    """

    temperature: Annotated[float | None, _Scalar(low=0, high=100, default=1, column=_FLOAT)] = None
    """Divides the logits; 0 is greedy. Unset is 1."""
    max_tokens: Annotated[int | None, _Scalar(low=1)] = None
    """Maximum tokens to generate, including resumed ones. Unset is up to the model's length."""
    ignore_eos: bool = False
    """Continues after an end-of-sequence token."""
    stop_token_ids: Collection[int] = ()
    """End the request; at most `MAX_STOP_TOKEN_IDS`."""
    seed: Annotated[int | None, _Scalar(low=0, high=MAX_SEED, column=_INT)] = None
    """Fixes the draws. If unset, the engine picks one."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    logprobs: int | None = None
    logit_bias: tuple[LogitBias, ...] = ()


_UNSET: Mapping[str, object] = {
    field.name: field.default for field in dataclasses.fields(SamplingParams)
}
_SCALARS: Mapping[str, _Scalar] = {
    name: mark
    for name, hint in get_type_hints(SamplingParams, include_extras=True).items()
    for mark in getattr(hint, "__metadata__", ())
}
_COLUMNS = {name: scalar for name, scalar in _SCALARS.items() if scalar.column}
_RECORD = struct.Struct("<" + "".join(scalar.column for scalar in _COLUMNS.values()))

SUPPORTED_PARAMS = tuple(
    name for name in _UNSET if name in _SCALARS or name in ("ignore_eos", "stop_token_ids")
)
"""The parameters that this version's engines support."""
_UNSUPPORTED_PARAMS = tuple(name for name in _UNSET if name not in SUPPORTED_PARAMS)

RECORD_COLUMNS: Mapping[str, int] = {name: index for index, name in enumerate(_COLUMNS)}
"""The place of each parameter in a record."""


class ParamFault(NamedTuple):
    """A parameter that cannot be served."""

    field: str
    value: str
    bounds: str


def from_message(message: "Message") -> SamplingParams:
    """Reads either contract's message. What only the router's has (`stop`, `n`) is left out."""
    values = {field.name: value for field, value in message.ListFields() if field.name in _UNSET}
    if "stop_token_ids" in values:
        values["stop_token_ids"] = tuple(values["stop_token_ids"])
    if "logit_bias" in values:
        values["logit_bias"] = tuple(
            LogitBias(bias.token_id, bias.bias) for bias in values["logit_bias"]
        )
    return SamplingParams(**values)


def to_fields(params: SamplingParams) -> dict[str, Any]:
    """Returns the fields of a message that are set.

    The message refuses a value that does not fit its field (ValueError or TypeError).
    """
    fields: dict[str, Any] = {}
    for name, unset in _UNSET.items():
        value = getattr(params, name)
        if value is not unset and value != unset:
            fields[name] = value
    if params.logit_bias:
        fields["logit_bias"] = [bias._asdict() for bias in params.logit_bias]
    return fields


def out_of_bounds(params: SamplingParams) -> ParamFault | None:
    """Returns the first supported parameter outside its bounds, or None."""
    for name, scalar in _SCALARS.items():
        value = getattr(params, name)
        if value is None:
            continue
        if scalar.column != _FLOAT and not hasattr(value, "__index__"):
            return ParamFault(name, _shown(value), f"the whole numbers {scalar.bounds}")
        # The comparison is false for NaN.
        if not scalar.low <= value <= scalar.high:
            return ParamFault(name, _shown(value), scalar.bounds)
    count = len(params.stop_token_ids)
    if count > MAX_STOP_TOKEN_IDS:
        return ParamFault("number of stop_token_ids", str(count), f"0 to {MAX_STOP_TOKEN_IDS}")
    return None


def unsupported(params: SamplingParams) -> ParamFault | None:
    """Returns the first parameter that this version's engines do not support, or None."""
    for name in _UNSUPPORTED_PARAMS:
        value = getattr(params, name)
        if value is None:
            continue
        if not isinstance(value, Sized):
            return ParamFault(name, _shown(value), "unset")
        if len(value):
            return ParamFault(name, f"{len(value)} entries", "unset")
    return None


def to_record(params: SamplingParams, seed: int) -> "array[int]":
    """Packs what the sampler needs to know of a sequence.

    Args:
        params: The request's parameters, already checked.
        seed: The seed in use.

    Returns:
        [len(RECORD_COLUMNS)] typecode "q": whole numbers, or the bits of a float32 in the low half.
    """
    values = [
        scalar.default if (value := getattr(params, name)) is None else value
        for name, scalar in _COLUMNS.items()
    ]
    values[RECORD_COLUMNS["seed"]] = seed
    return array("q", _RECORD.pack(*values))


def _shown(value: float) -> str:
    if value != value:
        return "NaN"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
