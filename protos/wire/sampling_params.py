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
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

from protos.wire.limits import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_SEQUENCE_TOKENS,
    MAX_BAD_SEQUENCES,
    MAX_BAD_TOKENS,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_SAMPLE_INDEX,
    MAX_SEED,
    MAX_STOP_TOKEN_IDS,
)
from protos.wire.number import shown_number
from protos.wire.token_ids import read_token_ids

if TYPE_CHECKING:
    from google.protobuf.message import Message

_FLOAT = "f4x"
_INT = "q"
"""A column of a record, in the notation of `struct`: eight bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scalar:
    """What is known of a number.

    Attributes:
        kind: Its notation in a record: `_FLOAT` or `_INT`.
        low: The smallest value.
        high: The largest value; infinity means no bound.
        default: The value of an unset parameter in a record.
        in_record: Whether the sampler needs it.
        is_neutral: Whether `default` changes nothing, so that an engine need not know it.
    """

    kind: str
    low: float
    high: float = math.inf
    default: float = 0
    in_record: bool = False
    is_neutral: bool = False

    @property
    def bounds(self) -> str:
        """The bounds as an error shows them."""
        return f"{self.low} and more" if self.high == math.inf else f"{self.low} to {self.high}"


class LogitBias(NamedTuple):
    """Adds `bias` to one token's logit."""

    token_id: int
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What a text must match."""

    form: str
    """One of `GRAMMAR_FORMS`."""
    text: str = ""
    """The schema, regular expression or grammar; empty for the other forms."""
    choices: tuple[str, ...] = ()
    """The texts of the form "choice"."""
    start_after_token_id: int | None = None
    """The grammar begins after this token; None means from the start."""


GRAMMAR_FORMS = ("json_schema", "json_object", "regex", "lark", "choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a request ends; None is unset: the engine's default.

    The contract of the engine, in which the fields have the same names, says what each one does.
    """

    temperature: Annotated[
        float | None, _Scalar(kind=_FLOAT, low=0, high=100, default=1, in_record=True)
    ] = None
    """Divides the logits; 0 is greedy."""
    max_tokens: Annotated[int | None, _Scalar(kind=_INT, low=0)] = None
    """Maximum tokens to generate, including resumed ones. 0 goes with `prompt_logprobs` only. Unset
    is up to the model's length."""
    ignore_eos: bool = False
    """Continues after an end-of-sequence token."""
    stop_token_ids: Collection[int] = ()
    """End the request; at most `MAX_STOP_TOKEN_IDS`."""
    seed: Annotated[int | None, _Scalar(kind=_INT, low=0, high=MAX_SEED, in_record=True)] = None
    """Fixes the draws. If unset, the engine picks one."""
    top_k: Annotated[
        int | None, _Scalar(kind=_INT, low=-1, high=2**31 - 1, is_neutral=True, in_record=True)
    ] = None
    """Keeps the k most likely tokens; 0 and -1 keep all."""
    top_p: Annotated[
        float | None,
        _Scalar(kind=_FLOAT, low=0, high=1, default=1, is_neutral=True, in_record=True),
    ] = None
    """Keeps the most likely tokens up to this probability."""
    min_p: Annotated[
        float | None, _Scalar(kind=_FLOAT, low=0, high=1, is_neutral=True, in_record=True)
    ] = None
    """Keeps tokens at least this likely, relative to the likeliest."""
    presence_penalty: Annotated[
        float | None, _Scalar(kind=_FLOAT, low=-2, high=2, is_neutral=True, in_record=True)
    ] = None
    """Subtracted from the logits of tokens generated before."""
    frequency_penalty: Annotated[
        float | None, _Scalar(kind=_FLOAT, low=-2, high=2, is_neutral=True, in_record=True)
    ] = None
    """The same, times how often each was generated."""
    repetition_penalty: Annotated[
        float | None,
        _Scalar(kind=_FLOAT, low=0.01, high=100, default=1, is_neutral=True, in_record=True),
    ] = None
    """Divides positive logits of tokens in prompt or output, and multiplies negative ones."""
    min_tokens: Annotated[int | None, _Scalar(kind=_INT, low=0, is_neutral=True)] = None
    """Forbids end-of-sequence and stop tokens before this many tokens."""
    logprobs: Annotated[
        int | None, _Scalar(kind=_INT, low=0, high=MAX_LOGPROBS, default=-1, in_record=True)
    ] = None
    """Reports the logprob of each generated token and of this many likeliest ones."""
    logit_bias: tuple[LogitBias, ...] = ()
    """Added to the logits; at most `MAX_LOGIT_BIASES`."""
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that must not be generated; at most `MAX_BAD_SEQUENCES`."""
    allowed_token_ids: Collection[int] = ()
    """The only tokens that may be generated; at most `MAX_ALLOWED_TOKEN_IDS`, empty allows all."""
    prompt_logprobs: Annotated[
        int | None, _Scalar(kind=_INT, low=0, high=MAX_LOGPROBS, default=-1, in_record=True)
    ] = None
    """As `logprobs`, of the tokens of the prompt."""
    sample_index: Annotated[
        int | None,
        _Scalar(kind=_INT, low=0, high=MAX_SAMPLE_INDEX, is_neutral=True, in_record=True),
    ] = None
    """Tells apart the draws of several continuations of one prompt with one seed."""
    grammar: Grammar | None = None
    """What the text must match."""


_UNSET: Mapping[str, object] = {
    field.name: field.default for field in dataclasses.fields(SamplingParams)
}
_SCALARS: Mapping[str, _Scalar] = {
    name: mark
    for name, hint in get_type_hints(SamplingParams, include_extras=True).items()
    for mark in getattr(hint, "__metadata__", ())
}
_COLUMNS = {name: scalar for name, scalar in _SCALARS.items() if scalar.in_record}
_COUNTS = ("num_prompt_tokens", "num_biases", "is_restricted")
"""Columns of a record that are no parameters."""
_RECORD = struct.Struct(
    "<" + "".join(scalar.kind for scalar in _COLUMNS.values()) + _INT * len(_COUNTS)
)
_BOUNDED_LISTS: Mapping[str, int] = {
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "logit_bias": MAX_LOGIT_BIASES,
    "bad_words_token_ids": MAX_BAD_SEQUENCES,
    "allowed_token_ids": MAX_ALLOWED_TOKEN_IDS,
}

DEFAULT_PARAMS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""The parameters for which a model can have defaults of its own."""

SUPPORTED_PARAMS = tuple(_UNSET)
"""The parameters that this version's engines support."""

BASIC_PARAMS = frozenset({"temperature", "max_tokens", "ignore_eos", "stop_token_ids", "seed"})
"""The parameters of the contract's first version, which every engine supports."""

ALL_PARAMS = frozenset(_UNSET)

_NEWER_PARAMS = tuple(name for name in _UNSET if name not in BASIC_PARAMS)
_newer_values = attrgetter(*_NEWER_PARAMS)
_NO_NEWER_VALUES = tuple(_UNSET[name] for name in _NEWER_PARAMS)

RECORD_COLUMNS: Mapping[str, int] = {
    name: index for index, name in enumerate((*_COLUMNS, *_COUNTS))
}
"""The place of each number in a record."""


class ParamFault(NamedTuple):
    """A parameter that cannot be served."""

    field: str
    value: str
    bounds: str
    unit: str = ""
    """Of what value and bounds count, such as the entries of a list; empty for a number itself."""

    @property
    def message(self) -> str:
        """What is wrong, on one line."""
        found = f"has {self.value} {self.unit}" if self.unit else f"is {self.value}"
        return f"{self.field} {found}, outside {self.bounds}"


def from_message(message: "Message") -> SamplingParams:
    """Reads either contract's message. What only the router's has is left out."""
    values = {field.name: value for field, value in message.ListFields() if field.name in _UNSET}
    if "stop_token_ids" in values:
        values["stop_token_ids"] = tuple(values["stop_token_ids"])
    if "allowed_token_ids" in values:
        values["allowed_token_ids"] = read_token_ids(message, "allowed_token_ids")
    if "logit_bias" in values:
        values["logit_bias"] = tuple(
            LogitBias(bias.token_id, bias.bias) for bias in values["logit_bias"]
        )
    if "bad_words_token_ids" in values:
        values["bad_words_token_ids"] = tuple(
            tuple(sequence.token_ids) for sequence in values["bad_words_token_ids"]
        )
    if "grammar" in values:
        values["grammar"] = _grammar_from_message(values["grammar"])
    return SamplingParams(**values)


def _grammar_from_message(message: "Message") -> Grammar | None:
    values = {field.name: value for field, value in message.ListFields()}
    start = values.pop("start_after_token_id", None)
    # A form that is set to false or to an empty text is not listed.
    form = message.WhichOneof("form")
    value = None if form is None else values.get(form)
    if form is None or (form == "json_object" and not value):
        # Without a form, it asks for nothing; that it has a beginning is a mistake.
        return None if start is None else Grammar(form="", start_after_token_id=start)
    return Grammar(
        form=form,
        text=value if isinstance(value, str) else "",
        choices=tuple(value.texts) if form == "choice" and value is not None else (),
        start_after_token_id=start,
    )


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
    if params.bad_words_token_ids:
        fields["bad_words_token_ids"] = [
            {"token_ids": sequence} for sequence in params.bad_words_token_ids
        ]
    if params.grammar is not None:
        fields["grammar"] = _grammar_fields(params.grammar)
    return fields


def _grammar_fields(grammar: Grammar) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if grammar.form == "choice":
        fields["choice"] = {"texts": grammar.choices}
    else:
        fields[grammar.form] = grammar.form == "json_object" or grammar.text
    if grammar.start_after_token_id is not None:
        fields["start_after_token_id"] = grammar.start_after_token_id
    return fields


def with_defaults(params: SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """Returns the parameters with a model's defaults where they are unset."""
    missing = {
        name: default
        for name in DEFAULT_PARAMS
        if getattr(params, name) is None and (default := getattr(defaults, name)) is not None
    }
    return dataclasses.replace(params, **missing) if missing else params


def end_token_ids(params: SamplingParams, eos_token_ids: Collection[int]) -> frozenset[int]:
    """Returns the tokens that end a request, given the model's end-of-sequence tokens.

    With a grammar these count even if the request ignores them: a grammar allows them where the
    text may end, and nothing follows them.
    """
    ends = frozenset(params.stop_token_ids)
    if params.ignore_eos and params.grammar is None:
        return ends
    return ends.union(eos_token_ids)


def out_of_bounds(params: SamplingParams) -> ParamFault | None:
    """Returns the first parameter outside its bounds, or None. Token IDs are not checked here."""
    for name, scalar in _SCALARS.items():
        value = getattr(params, name)
        if value is None:
            continue
        if scalar.kind == _INT and not hasattr(value, "__index__"):
            return ParamFault(name, shown_number(value), f"the whole numbers {scalar.bounds}")
        # The comparison is false for NaN. A float32 may be a little below the bound it stands for.
        if not _in_float32(scalar.low) <= value <= scalar.high:
            return ParamFault(name, shown_number(value), scalar.bounds)
    if params.max_tokens == 0 and params.prompt_logprobs is None:
        return ParamFault("max_tokens", "0", "1 and more; 0 needs prompt_logprobs")
    for name, most in _BOUNDED_LISTS.items():
        if (count := len(getattr(params, name))) > most:
            return ParamFault(name, str(count), f"0 to {most}", "entries")
    return _bias_fault(params) or _bad_words_fault(params)


def _bias_fault(params: SamplingParams) -> ParamFault | None:
    for index, bias in enumerate(params.logit_bias):
        if not -MAX_LOGIT_BIAS <= bias.bias <= MAX_LOGIT_BIAS:
            bounds = f"{-MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}"
            return ParamFault(f"logit_bias[{index}].bias", shown_number(bias.bias), bounds)
    return None


def _bad_words_fault(params: SamplingParams) -> ParamFault | None:
    num_tokens = 0
    for index, sequence in enumerate(params.bad_words_token_ids):
        num_tokens += len(sequence)
        if not 1 <= len(sequence) <= MAX_BAD_SEQUENCE_TOKENS:
            name = f"bad_words_token_ids[{index}]"
            bounds = f"1 to {MAX_BAD_SEQUENCE_TOKENS}"
            return ParamFault(name, str(len(sequence)), bounds, "tokens")
    if num_tokens > MAX_BAD_TOKENS:
        bounds = f"0 to {MAX_BAD_TOKENS}"
        return ParamFault("bad_words_token_ids", str(num_tokens), bounds, "tokens in all")
    return None


def is_neutral(params: SamplingParams, name: str) -> bool:
    """Whether a parameter is unset or has a value that changes nothing."""
    value = getattr(params, name)
    if value is _UNSET[name] or value == _UNSET[name]:
        return True
    if isinstance(value, Sized):
        return len(value) == 0
    scalar = _SCALARS.get(name)
    if scalar is None or not scalar.is_neutral:
        return False
    return bool(value == scalar.default or (name == "top_k" and value == -1))


def demanded(params: SamplingParams) -> frozenset[str]:
    """Returns the parameters that an engine must support for this request, without the basic ones.

    Most requests have none; finding that out takes less than a microsecond.
    """
    values = _newer_values(params)
    if values == _NO_NEWER_VALUES:
        return frozenset()
    entries = zip(_NEWER_PARAMS, values, _NO_NEWER_VALUES, strict=True)
    return frozenset(
        name for name, value, unset in entries if value != unset and not is_neutral(params, name)
    )


def plain_value(name: str) -> float:
    """Returns what an unset number means for a model without defaults of its own."""
    return _SCALARS[name].default


def unsupported(
    params: SamplingParams, supported: Collection[str] = SUPPORTED_PARAMS
) -> ParamFault | None:
    """Returns the first parameter that engines with these parameters do not support, or None."""
    for name in _UNSET:
        if name in supported or is_neutral(params, name):
            continue
        value = getattr(params, name)
        if isinstance(value, Sized):
            return ParamFault(name, f"{len(value)} entries", "unset")
        shown = value.form if isinstance(value, Grammar) else shown_number(value)
        return ParamFault(name, shown, "unset")
    return None


def to_record(
    params: SamplingParams,
    seed: int,
    *,
    num_prompt_tokens: int = 0,
    num_biases: int = 0,
    is_restricted: bool = False,
) -> "array[int]":
    """Packs what the sampler needs to know of a sequence, besides lists of tokens.

    Args:
        params: The request's parameters, already checked.
        seed: The seed in use.
        num_prompt_tokens: Where the output begins.
        num_biases: Entries of the list of biases.
        is_restricted: Whether only some tokens are allowed.

    Returns:
        [len(RECORD_COLUMNS)] typecode "q": whole numbers, or the bits of a float32 in the low half.
    """
    values = [
        scalar.default if (value := getattr(params, name)) is None else value
        for name, scalar in _COLUMNS.items()
    ]
    values[RECORD_COLUMNS["seed"]] = seed
    values += [num_prompt_tokens, num_biases, is_restricted]
    return array("q", _RECORD.pack(*values))


@cache
def _in_float32(value: float) -> float:
    nearest: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return min(value, nearest)
