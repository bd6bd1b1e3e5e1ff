"""The state of running sequences, kept by slot: what a step reads and what it adds."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs

# Not tuned: one program handles at most this many tokens of a row, or block table entries.
_CHUNK = 256


class SlotRows(NamedTuple):
    """The inputs of a step's rows. Tokens are stored row after row."""

    input_ids: torch.Tensor
    """[num_tokens] int32."""
    positions: torch.Tensor
    """[num_tokens] int64."""
    cache_locs: torch.Tensor
    """[num_tokens] int64, block * block_size + offset; -1 in padding."""
    block_table: torch.Tensor
    """[num_rows, max_blocks_per_seq] int32; valid up to the end of each row's sequence."""
    seq_lens: torch.Tensor
    """[num_rows] int32, tokens in the cache after the step has stored its own; 0 in padding."""
    decode_seq_lens: torch.Tensor
    """[num_rows] int32, the same of rows that compute one token; 0 in others."""
    next_positions: torch.Tensor
    """[num_rows] int64, position of the row's new token; 0 in padding and where none is wanted."""


def read_slots(
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    query_start_loc: torch.Tensor,
    is_decode: torch.Tensor,
    is_sampled: torch.Tensor,
    num_tokens: int,
    max_query_len: int,
    block_size: int,
) -> SlotRows:
    """Gathers the inputs of a step's rows.

    Row r computes the positions of its slot's sequence from num_computed_tokens[r] on, as many as
    query_start_loc gives. A row whose num_computed_tokens is -1 is padding.

    Args:
        tokens: [num_slots, max_model_len] int32
        block_table: [num_slots, max_blocks_per_seq] int32
        slots: [num_rows] int64
        num_computed_tokens: [num_rows] int64
        query_start_loc: [num_rows + 1] int64, where each row's tokens begin in the step
        is_decode: [num_rows] int64, 1 in rows that compute one token, 0 in others
        is_sampled: [num_rows] int64, 1 in rows that yield a token, 0 in others
        num_tokens: the last value of query_start_loc
        max_query_len: the most tokens of a row, or an upper bound
        block_size: tokens of one block

    Raises:
        ValueError: an unsupported shape or type
    """
    _check_state(tokens, slots)
    num_slots, num_rows = tokens.shape[0], slots.shape[0]
    check_dtype("block_table", block_table, torch.int32)
    check_shape("block_table", block_table, num_slots, None)
    check_contiguous_rows("block_table", block_table)
    for name, rows, size in (
        ("num_computed_tokens", num_computed_tokens, num_rows),
        ("query_start_loc", query_start_loc, num_rows + 1),
        ("is_decode", is_decode, num_rows),
        ("is_sampled", is_sampled, num_rows),
    ):
        check_dtype(name, rows, torch.int64)
        check_shape(name, rows, size)
        check_contiguous_rows(name, rows)
    arguments = (
        tokens, block_table, slots, num_computed_tokens, query_start_loc, is_decode, is_sampled,
        num_tokens, max_query_len, block_size,
    )  # fmt: skip
    if tokens.device.type == "cpu":
        return SlotRows(*reference.read_slots(*arguments))
    return _read_slots_triton(*arguments)


def append_tokens(
    tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor
) -> None:
    """Writes each row's new token into its slot; position 0 is padding and writes nothing.

    Args:
        tokens: [num_slots, max_model_len] int32, written in place
        slots: [num_rows] int64
        positions: [num_rows] int64
        token_ids: [num_rows] int64; -1, no token, is written as 0, a valid input ID

    Raises:
        ValueError: an unsupported shape or type
    """
    _check_state(tokens, slots)
    for name, rows in (("positions", positions), ("token_ids", token_ids)):
        check_dtype(name, rows, torch.int64)
        check_shape(name, rows, slots.shape[0])
        check_contiguous_rows(name, rows)
    if tokens.device.type == "cpu":
        reference.append_tokens(tokens, slots, positions, token_ids)
    else:
        _append_tokens_triton(tokens, slots, positions, token_ids)


def _check_state(tokens: torch.Tensor, slots: torch.Tensor) -> None:
    check_dtype("tokens", tokens, torch.int32)
    check_shape("tokens", tokens, None, None)
    check_contiguous_rows("tokens", tokens)
    check_dtype("slots", slots, torch.int64)
    check_shape("slots", slots, None)
    check_contiguous_rows("slots", slots)


def _read_slots_triton(
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    query_start_loc: torch.Tensor,
    is_decode: torch.Tensor,
    is_sampled: torch.Tensor,
    num_tokens: int,
    max_query_len: int,
    block_size: int,
) -> SlotRows:
    num_rows, device = slots.shape[0], tokens.device
    rows = SlotRows(
        input_ids=torch.empty(num_tokens, dtype=torch.int32, device=device),
        positions=torch.empty(num_tokens, dtype=torch.int64, device=device),
        cache_locs=torch.empty(num_tokens, dtype=torch.int64, device=device),
        # The full width, so that a kernel sees the same stride in all steps.
        block_table=torch.empty((num_rows, block_table.shape[1]), dtype=torch.int32, device=device),
        seq_lens=torch.empty(num_rows, dtype=torch.int32, device=device),
        decode_seq_lens=torch.empty(num_rows, dtype=torch.int32, device=device),
        next_positions=torch.empty(num_rows, dtype=torch.int64, device=device),
    )
    if num_rows == 0:
        return rows
    _read_slots_kernel[(num_rows, triton.cdiv(max_query_len, _CHUNK))](
        tokens,
        block_table,
        slots,
        num_computed_tokens,
        query_start_loc,
        is_decode,
        is_sampled,
        *rows,
        tokens.stride(0),
        block_table.stride(0),
        rows.block_table.stride(0),
        BLOCK_SIZE=block_size,
        CHUNK=_CHUNK,
        num_warps=1,
    )
    return rows


def _append_tokens_triton(
    tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor
) -> None:
    num_rows = slots.shape[0]
    if num_rows == 0:
        return
    _append_tokens_kernel[(triton.cdiv(num_rows, _CHUNK),)](
        tokens,
        slots,
        positions,
        token_ids,
        tokens.stride(0),
        num_rows,
        CHUNK=_CHUNK,
        num_warps=1,
        **dependent_launch(tokens),
    )


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize_on_alignment=[
        "slots", "num_computed_tokens", "query_start_loc", "is_decode", "is_sampled",
        "out_input_ids", "out_positions", "out_cache_locs", "out_block_table", "out_seq_lens",
        "out_decode_seq_lens", "out_next_positions",
    ]
)  # fmt: skip
def _read_slots_kernel(
    tokens,
    block_table,
    slots,
    num_computed_tokens,
    query_start_loc,
    is_decode,
    is_sampled,
    out_input_ids,
    out_positions,
    out_cache_locs,
    out_block_table,
    out_seq_lens,
    out_decode_seq_lens,
    out_next_positions,
    tokens_stride,
    table_stride,
    out_table_stride,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    slot = tl.load(slots + row)
    num_computed = tl.load(num_computed_tokens + row)
    start = tl.load(query_start_loc + row)
    query_len = tl.load(query_start_loc + row + 1) - start
    is_padding = num_computed < 0
    seq_len = tl.where(is_padding, 0, num_computed + query_len)
    table = block_table + slot * table_stride

    offsets = chunk * CHUNK + tl.arange(0, CHUNK)
    is_token = offsets < query_len
    positions = tl.where(is_padding, 0, num_computed + offsets)
    is_read = is_token & (positions < seq_len)
    input_ids = tl.load(tokens + slot * tokens_stride + positions, mask=is_read, other=0)
    blocks = tl.load(table + positions // BLOCK_SIZE, mask=is_read, other=0).to(tl.int64)
    mapped = tl.where(is_read, blocks * BLOCK_SIZE + positions % BLOCK_SIZE, -1)
    tl.store(out_input_ids + start + offsets, input_ids, mask=is_token)
    tl.store(out_positions + start + offsets, positions, mask=is_token)
    tl.store(out_cache_locs + start + offsets, mapped, mask=is_token)

    if chunk == 0:
        num_blocks = tl.cdiv(seq_len, BLOCK_SIZE)
        for first in range(0, num_blocks, CHUNK):
            indices = first + tl.arange(0, CHUNK)
            entries = tl.load(table + indices, mask=indices < num_blocks, other=0)
            tl.store(
                out_block_table + row * out_table_stride + indices,
                entries,
                mask=indices < num_blocks,
            )
        tl.store(out_seq_lens + row, seq_len.to(tl.int32))
        tl.store(out_decode_seq_lens + row, (seq_len * tl.load(is_decode + row)).to(tl.int32))
        tl.store(out_next_positions + row, seq_len * tl.load(is_sampled + row))


@triton.jit(
    do_not_specialize=["num_rows"],
    do_not_specialize_on_alignment=["slots", "positions", "token_ids"],
)
def _append_tokens_kernel(
    tokens,
    slots,
    positions,
    token_ids,
    tokens_stride,
    num_rows,
    CHUNK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    rows = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    is_row = rows < num_rows
    position = tl.load(positions + rows, mask=is_row, other=0)
    is_written = is_row & (position > 0)
    slot = tl.load(slots + rows, mask=is_written, other=0)
    token = tl.load(token_ids + rows, mask=is_written, other=0)
    token = tl.maximum(token, 0).to(tl.int32)
    tl.store(tokens + slot * tokens_stride + position, token, mask=is_written)
