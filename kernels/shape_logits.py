"""What a request adds to the logits of its sequence, forbids and penalises."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels import sampling_reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.sample import as_float

_FEW_ROWS = 16
_CHUNK = 1024
_IN_PROMPT = 1 << 30
"""Added to the count of a token that is in the prompt."""


class LogitEdits(NamedTuple):
    """The lists of each slot's request, beside its record.

    A bias is four numbers: the token; the float32 added to its logit, as bits; the position from
    which on it no longer counts; and, for the last token of a forbidden sequence, where the others
    begin in `forbidden`, times 256, plus how many they are. It then counts only if the sequence's
    last generated tokens are these. The biases of a slot are sorted by token.
    """

    biases: torch.Tensor
    """[num_slots, 4, max_biases] int32."""
    forbidden: torch.Tensor
    """[num_slots, max_forbidden] int32 tokens."""
    allowed: torch.Tensor
    """[num_slots, at least vocab_size / 32] int32: bit i % 32 of word i // 32 allows token i."""


def shape_logits(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    edits: LogitEdits,
    columns: Mapping[str, int],
) -> torch.Tensor:
    """Applies allowed tokens, biases and penalties, in this order.

    Args:
        logits: [num_rows, vocab_size], rows may be strided
        tokens: [num_slots, max_model_len] int32, the known tokens of each sequence
        records: [num_slots, num_columns] int64, the sampling parameters of each sequence
        slots: [num_rows] int64, whose record and lists a row follows
        positions: [num_rows] int64, the positions of the tokens drawn; a row with 0 is padding, and
            its result undefined
        edits: the lists of each slot
        columns: where a record holds `sampling_reference.SHAPING_COLUMNS`

    Returns:
        [num_rows, vocab_size] float32

    Raises:
        ValueError: an unsupported shape or type
    """
    check_dtype("logits", logits)
    check_shape("logits", logits, None, None)
    check_contiguous_rows("logits", logits)
    check_dtype("tokens", tokens, torch.int32)
    check_shape("edits.biases", edits.biases, tokens.shape[0], 4, None)
    check_shape("edits.forbidden", edits.forbidden, tokens.shape[0], None)
    check_shape("edits.allowed", edits.allowed, tokens.shape[0], None)
    if edits.allowed.shape[1] * 32 < logits.shape[1]:
        raise ValueError(
            f"edits.allowed has {edits.allowed.shape[1]} words a slot; expected at least one for "
            f"each 32 of {logits.shape[1]} tokens"
        )
    given = logits, tokens, records, slots, positions, edits, columns
    if logits.device.type == "cpu":
        return sampling_reference.shape_logits(*given)
    return _shape_logits_triton(*given)


def _shape_logits_triton(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    edits: LogitEdits,
    columns: Mapping[str, int],
) -> torch.Tensor:
    num_rows, vocab_size = logits.shape
    shaped = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=logits.device)
    if num_rows == 0:
        return shaped
    tile = 1024 if num_rows <= _FEW_ROWS else 4096
    _shape_kernel[(num_rows, triton.cdiv(vocab_size, tile))](
        logits,
        tokens,
        records,
        slots,
        positions,
        edits.biases,
        edits.forbidden,
        edits.allowed,
        shaped,
        shaped.view(torch.int32),
        logits.stride(0),
        tokens.stride(0),
        records.stride(0),
        edits.biases.stride(0),
        edits.biases.stride(1),
        edits.forbidden.stride(0),
        edits.allowed.stride(0),
        vocab_size,
        PROMPT=columns["num_prompt_tokens"],
        NUM_BIASES=columns["num_biases"],
        IS_RESTRICTED=columns["is_restricted"],
        REPETITION=columns["repetition_penalty"],
        FREQUENCY=columns["frequency_penalty"],
        PRESENCE=columns["presence_penalty"],
        TILE=tile,
        CHUNK=_CHUNK,
        IN_PROMPT=_IN_PROMPT,
        MAX_PREFIX=sampling_reference.MAX_PREFIX,
        num_warps=4 if tile == 1024 else 8,
        **dependent_launch(logits),
    )
    return shaped


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _shape_kernel(
    logits,
    tokens,
    records,
    slots,
    positions,
    biases,
    forbidden,
    allowed,
    shaped,
    counters,
    logits_stride,
    tokens_stride,
    records_stride,
    biases_stride,
    bias_field_stride,
    forbidden_stride,
    allowed_stride,
    vocab_size,
    PROMPT: tl.constexpr,
    NUM_BIASES: tl.constexpr,
    IS_RESTRICTED: tl.constexpr,
    REPETITION: tl.constexpr,
    FREQUENCY: tl.constexpr,
    PRESENCE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    IN_PROMPT: tl.constexpr,
    MAX_PREFIX: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * TILE
    ids = first + tl.arange(0, TILE)
    is_entry = ids < vocab_size
    # First of all, since everything else waits for one small number after the other.
    x = tl.load(logits + row * logits_stride + ids, mask=is_entry, other=float("-inf"))
    x = x.to(tl.float32)
    position = tl.load(positions + row).to(tl.int32)
    slot = tl.load(slots + row)
    record = records + slot * records_stride
    sequence = tokens + slot * tokens_stride
    num_prompt = tl.load(record + PROMPT).to(tl.int32)

    if tl.load(record + IS_RESTRICTED) != 0:
        words = tl.load(allowed + slot * allowed_stride + ids // 32, mask=is_entry, other=0)
        x = tl.where(((words >> (ids % 32)) & 1) != 0, x, float("-inf"))

    num_biases = tl.load(record + NUM_BIASES).to(tl.int32)
    if num_biases > 0:
        x = _add_biases(
            x, ids, first, sequence, position, num_prompt,
            biases + slot * biases_stride, bias_field_stride, num_biases,
            forbidden + slot * forbidden_stride, TILE, CHUNK, MAX_PREFIX,
        )  # fmt: skip

    repetition = as_float(tl.load(record + REPETITION))
    frequency = as_float(tl.load(record + FREQUENCY))
    presence = as_float(tl.load(record + PRESENCE))
    if ((repetition != 1.0) | (frequency != 0.0) | (presence != 0.0)) & (position > 0):
        # Counted in the memory of the result, which is free until the end.
        counts = counters + row * vocab_size
        tl.store(counts + ids, tl.zeros((TILE,), dtype=tl.int32), mask=is_entry)
        tl.debug_barrier()
        for start in range(num_prompt, position, CHUNK):
            token, is_here = _tokens_of_tile(sequence, start, position, first, TILE, CHUNK)
            tl.atomic_add(counts + token, 1, mask=is_here)
        if repetition != 1.0:
            for start in range(0, num_prompt, CHUNK):
                token, is_here = _tokens_of_tile(sequence, start, num_prompt, first, TILE, CHUNK)
                tl.atomic_or(counts + token, IN_PROMPT, mask=is_here)
        tl.debug_barrier()
        seen = tl.load(counts + ids, mask=is_entry, other=0, cache_modifier=".cg")
        generated = seen & (IN_PROMPT - 1)
        x = tl.where(seen > 0, tl.where(x > 0, x / repetition, x * repetition), x)
        x -= frequency * generated.to(tl.float32)
        x -= tl.where(generated > 0, presence, 0.0)
        # Nothing is overwritten before all have read it.
        tl.debug_barrier()
    tl.store(shaped + row * vocab_size + ids, x, mask=is_entry)


@triton.jit
def _add_biases(
    x,
    ids,
    first,
    sequence,
    position,
    num_prompt,
    biases,
    field_stride,
    num_biases,
    forbidden,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    MAX_PREFIX: tl.constexpr,
):
    """Adds the biases of the tile's tokens, which are neighbours in the sorted list."""
    begin = 0
    end = 0
    for start in range(0, num_biases, CHUNK):
        places = start + tl.arange(0, CHUNK)
        listed = tl.load(biases + places, mask=places < num_biases, other=0x7FFFFFFF)
        begin += tl.sum((listed < first).to(tl.int32), axis=0)
        end += tl.sum((listed < first + TILE).to(tl.int32), axis=0)
    for place in range(begin, end):
        token = tl.load(biases + place)
        bias = tl.load(biases + field_stride + place).to(tl.float32, bitcast=True)
        is_active = position < tl.load(biases + 2 * field_stride + place)
        prefix = tl.load(biases + 3 * field_stride + place)
        count = prefix & 255
        if count > 0:
            offsets = tl.arange(0, MAX_PREFIX)
            start = position - count
            is_read = (offsets < count) & (start >= num_prompt)
            known = tl.load(sequence + start + offsets, mask=is_read, other=-1)
            wanted = tl.load(forbidden + (prefix >> 8) + offsets, mask=offsets < count, other=-1)
            is_active &= tl.sum((known != wanted).to(tl.int32), axis=0) == 0
        x += tl.where((ids == token) & is_active, bias, 0.0)
    return x


@triton.jit
def _tokens_of_tile(sequence, start, end, first, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """Returns a chunk of a sequence's tokens, and which of them are in the tile."""
    places = start + tl.arange(0, CHUNK)
    token = tl.load(sequence + places, mask=places < end, other=-1)
    return token, (token >= first) & (token < first + TILE)
