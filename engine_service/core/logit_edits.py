"""What a request adds to the logits of tokens, forbids and allows, as the sampler reads it."""

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine_service.core.types import int32_array
from protos.wire.sampling_params import SamplingParams

if TYPE_CHECKING:
    from array import array

ALWAYS = 2**31 - 1
"""The end of a bias that always counts."""
BIAS_FIELDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitEdits:
    """The lists of one request; `kernels.shape_logits.LogitEdits` says what the numbers mean."""

    biases: "array[int]" = field(default_factory=int32_array)
    """[num_biases * BIAS_FIELDS] entry after entry, sorted by token."""
    forbidden: "array[int]" = field(default_factory=int32_array)
    """Tokens before the last ones of forbidden sequences."""
    allowed: "array[int]" = field(default_factory=int32_array)
    """The only tokens allowed; empty allows all."""

    @property
    def num_biases(self) -> int:
        """Entries of `biases`."""
        return len(self.biases) // BIAS_FIELDS

    def to_record(self, slot: int) -> "array[int]":
        """Packs the lists for a step plan: slot, three lengths, and the lists, typecode "i"."""
        lengths = (slot, len(self.biases), len(self.forbidden), len(self.allowed))
        return int32_array(lengths) + self.biases + self.forbidden + self.allowed

    def __bool__(self) -> bool:
        return bool(self.biases or self.allowed)


NO_EDITS = LogitEdits()


def logit_edits(
    params: SamplingParams, *, num_prompt_tokens: int, stop_token_ids: frozenset[int]
) -> LogitEdits:
    """Returns the lists of a request.

    Args:
        params: Its parameters, already checked.
        num_prompt_tokens: Tokens of its prompt.
        stop_token_ids: The tokens that end it, which `min_tokens` forbids at first.
    """
    if not (
        params.logit_bias
        or params.bad_words_token_ids
        or params.allowed_token_ids
        or params.min_tokens
    ):
        return NO_EDITS
    entries = [(bias.token_id, _bits(bias.bias), ALWAYS, 0) for bias in params.logit_bias]
    hidden = _bits(-float("inf"))
    if params.min_tokens:
        end = min(num_prompt_tokens + params.min_tokens, ALWAYS)
        entries += [(token_id, hidden, end, 0) for token_id in stop_token_ids]
    forbidden = int32_array()
    for *before, last in params.bad_words_token_ids:
        entries.append((last, hidden, ALWAYS, len(forbidden) << 8 | len(before)))
        forbidden.extend(before)
    biases = int32_array()
    for entry in sorted(entries):
        biases.extend(entry)
    return LogitEdits(
        biases=biases, forbidden=forbidden, allowed=int32_array(sorted(params.allowed_token_ids))
    )


def _bits(value: float) -> int:
    """Returns the bits of a float32 as an int32."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits
