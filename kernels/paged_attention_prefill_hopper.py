"""Prefill attention for Hopper: one warp copies while eight warps compute.

Source: FlashAttention-3 (Shah et al., 2024), sections 3.1 and 3.2. A producer warp fetches tiles
with the bulk copy engine for two consumers of four warps, each with half the rows of a query tile.
A consumer starts the scores of a tile of keys together with the products of the previous tile's
values, so that the softmax of one tile overlaps with the products of the other.

A program handles two query tiles of one sequence, one from its end and one from its start. Late
tokens see more keys than early ones, so that all pairs of a sequence take equal work. If the number
of tiles is odd, the middle tile takes half as much.

Written in Gluon, Triton's language for kernels that place registers and barriers themselves.
"""

import math

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.core import _aggregate as aggregate

from kernels.gpu import is_hopper
from kernels.tile_ring import make_ring

# Measured on an H200, bfloat16, head_dim 128, blocks of 64 tokens. Tiles of 64 tokens reach 91 % of
# the speed; barriers that make the consumers take turns at the matrix units change nothing.
_TILE = gl.constexpr(128)
"""Tokens of a tile of keys and values."""
_HEAD_DIM = gl.constexpr(128)
_STAGES = gl.constexpr(2)
"""Tiles of keys, and as many of values, in shared memory."""
_ROWS = gl.constexpr(64)
"""Rows of a consumer: tokens times the query heads of a key-value head."""
_PIECE = gl.constexpr(64)
"""Tokens, and dimensions, of one copy: a swizzled row of shared memory is that wide."""
_LAYOUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
"""Layout of a consumer's scores, [rows, tile], and of its mixed values, [rows, head_dim]."""
_CONSUMER_REGISTERS = gl.constexpr(232)
_PRODUCER_REGISTERS = gl.constexpr(40)


def can_attend(queries: torch.Tensor, kv_cache: torch.Tensor) -> bool:
    """Returns whether the kernel supports these arguments of `paged_attention_prefill`."""
    _, num_heads, head_dim = queries.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    group = num_heads // num_kv_heads
    token_stride = kv_cache.stride(3)
    strides = (*queries.stride()[:2], token_stride)
    return (
        queries.is_cuda
        and is_hopper(queries.device)
        and queries.dtype in (torch.float16, torch.bfloat16)
        and head_dim == _HEAD_DIM.value
        and block_size % _PIECE.value == 0
        and group in (1, 2, 4, 8, 16, 32, 64)
        and token_stride >= head_dim
        # The copy engine sees the cache as rows, and needs addresses at multiples of 16 bytes.
        and all(stride % token_stride == 0 for stride in kv_cache.stride()[:3])
        and all(stride % 8 == 0 for stride in strides)
        and queries.data_ptr() % 16 == 0
        and kv_cache.data_ptr() % 16 == 0
    )


def paged_attention_prefill_hopper(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes `paged_attention_prefill` for arguments that `can_attend` accepts."""
    if out is None:
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    num_tokens, num_heads, head_dim = queries.shape
    _, num_blocks, num_kv_heads, block_size, _ = kv_cache.shape
    num_seqs = block_table.shape[0]
    group = num_heads // num_kv_heads
    tokens = _ROWS.value // group
    *outer_strides, token_stride, _ = kv_cache.stride()
    half_rows, block_rows, head_rows = (stride // token_stride for stride in outer_strides)
    num_rows = half_rows + (num_blocks - 1) * block_rows + (num_kv_heads - 1) * head_rows
    num_rows += block_size
    # Each sequence starts a new pair: this upper bound needs no value from the device.
    num_pairs = triton.cdiv(num_tokens, 4 * tokens) + num_seqs
    _prefill_kernel[(num_pairs * num_kv_heads,)](
        _describe(queries, queries.shape, queries.stride(), [tokens, group, head_dim]),
        _describe(kv_cache, [num_rows, head_dim], [token_stride, 1], [_PIECE.value, _PIECE.value]),
        block_table,
        query_start_loc,
        seq_lens,
        out,
        half_rows,
        block_rows,
        head_rows,
        block_table.stride(0),
        num_seqs,
        scale * math.log2(math.e),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        BLOCK_SIZE=block_size,
        num_warps=4,
    )
    return out


def _describe(tensor, shape, strides, box) -> TensorDescriptor:
    dtype = gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for(box, dtype)
    return TensorDescriptor(tensor, list(shape), list(strides), box, layout)


@aggregate
class _Work:
    """The work of one program: part of one key-value head of one sequence."""

    pair: gl.tensor
    """Number of the pair of query tiles in the sequence."""
    seq: gl.tensor
    query_start: gl.tensor
    """Row of the sequence's first query."""
    query_len: gl.tensor
    seq_len: gl.tensor
    kv_head: gl.tensor
    GROUP: gl.constexpr
    TOKENS: gl.constexpr
    """Tokens of a query tile."""

    @gluon.constexpr_function
    def __init__(self, pair, seq, query_start, query_len, seq_len, kv_head, GROUP) -> None:
        self.pair = pair
        self.seq = seq
        self.query_start = query_start
        self.query_len = query_len
        self.seq_len = seq_len
        self.kv_head = kv_head
        self.GROUP = gl.constexpr(GROUP)
        self.TOKENS = gl.constexpr(2 * _ROWS.value // GROUP)

    @gluon.jit
    def num_tiles(self):
        """Returns the number of query tiles to compute: 2, 1 in the sequence's middle, or 0."""
        return gl.minimum(2, gl.cdiv(self.query_len, self.TOKENS) - 2 * self.pair)

    @gluon.jit
    def tile(self, number):
        """Returns the first token of a query tile, and how many tiles of keys it sees."""
        last = gl.cdiv(self.query_len, self.TOKENS) - 1
        first_token = gl.where(number == 0, last - self.pair, self.pair) * self.TOKENS
        num_tokens = gl.minimum(first_token + self.TOKENS, self.query_len)
        return first_token, gl.cdiv(self.seq_len - self.query_len + num_tokens, _TILE)


# Values that change with the batch must not trigger a compilation while serving.
@gluon.jit(
    do_not_specialize=["num_seqs"],
    do_not_specialize_on_alignment=["block_table", "query_start_loc", "seq_lens"],
)
def _prefill_kernel(
    queries,
    kv,
    block_table,
    query_start_loc,
    seq_lens,
    out,
    half_rows,
    block_rows,
    head_rows,
    table_stride,
    num_seqs,
    scale,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
):
    work = _find_work(query_start_loc, seq_lens, num_seqs, NUM_KV_HEADS, GROUP)
    if work.num_tiles() > 0:
        dtype: gl.constexpr = kv.dtype
        layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_ROWS, _HEAD_DIM], dtype)
        tile: gl.constexpr = [_STAGES, _TILE, _HEAD_DIM]
        halves = gl.allocate_shared_memory(dtype, [2, _ROWS, _HEAD_DIM], layout)
        query_ring = make_ring(halves, 1)
        keys = make_ring(gl.allocate_shared_memory(dtype, tile, layout), 2)
        values = make_ring(gl.allocate_shared_memory(dtype, tile, layout), 2)
        tail_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(tail_full, 1)
        fence_async_shared()
        table = block_table + work.seq.to(gl.int64) * table_stride
        first_row = work.kv_head * head_rows
        gl.warp_specialize(
            [
                (_consume, (0, work, query_ring, keys, values, scale, out, NUM_KV_HEADS)),
                (_consume, (1, work, query_ring, keys, values, scale, out, NUM_KV_HEADS)),
                (
                    _produce,
                    (
                        work, query_ring, keys, values, tail_full, queries, kv, table,
                        first_row, half_rows, block_rows, BLOCK_SIZE,
                    ),
                ),
            ],
            [4, 1],
            [_CONSUMER_REGISTERS, _PRODUCER_REGISTERS],
        )  # fmt: skip


@gluon.jit
def _find_work(
    query_start_loc, seq_lens, num_seqs, NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr
):
    """Returns this program's work; a pair that belongs to no sequence gets no queries.

    Sequence i's pairs start at query_start_loc[i] // tokens + i, which leaves room for all of them.
    """
    CHUNK: gl.constexpr = 256
    TOKENS: gl.constexpr = 4 * _ROWS // GROUP
    # Each warp holds all values, so that none needs another's.
    layout: gl.constexpr = gl.BlockedLayout([8], [32], [gl.num_warps()], [0])
    # The first places belong to decoding sequences, with nothing to do here: they come last.
    place = (gl.num_programs(0) - 1 - gl.program_id(0)) // NUM_KV_HEADS
    seq = 0
    query_start = 0
    query_end = 0
    seq_len = 0
    for first in range(0, num_seqs, CHUNK):
        seqs = first + gl.arange(0, CHUNK, layout)
        is_seq = seqs < num_seqs
        starts = gl.load(query_start_loc + seqs, mask=is_seq, other=0)
        ends = gl.load(query_start_loc + seqs + 1, mask=is_seq, other=0)
        lens = gl.load(seq_lens + seqs, mask=is_seq, other=0)
        is_started = is_seq & (starts // TOKENS + seqs <= place)
        num_started = gl.sum(is_started.to(gl.int32), axis=0)
        if num_started > 0:
            seq = first + num_started - 1
            is_it = seqs == seq
            query_start = gl.sum(gl.where(is_it, starts, 0), axis=0)
            query_end = gl.sum(gl.where(is_it, ends, 0), axis=0)
            seq_len = gl.sum(gl.where(is_it, lens, 0), axis=0)
    pair = place - query_start // TOKENS - seq
    kv_head = gl.program_id(0) % NUM_KV_HEADS
    return _Work(pair, seq, query_start, query_end - query_start, seq_len, kv_head, GROUP)


@gluon.jit
def _consume(
    NUMBER: gl.constexpr, work, queries, keys, values, scale, out, NUM_KV_HEADS: gl.constexpr
):
    """Attends with one half of the rows of each query tile, NUMBER 0 or 1."""
    layout: gl.constexpr = gl.SliceLayout(1, _LAYOUT)
    query_rows = gl.arange(0, _ROWS, layout) // work.GROUP
    count = 0
    for number in range(work.num_tiles()):
        first_token, num_key_tiles = work.tile(number)
        first_token += NUMBER * (work.TOKENS // 2)
        first_position = work.seq_len - work.query_len + first_token
        positions = first_position + query_rows
        num_whole = gl.minimum((first_position + 1) // _TILE, num_key_tiles)

        queries.wait_full(2 * number + NUMBER)
        query = queries.tile(NUMBER)
        keys.wait_full(count)
        scores = warpgroup_mma_wait(0, deps=[_start_scores(query, keys.tile(count))])
        keys.release(count)
        maximum = gl.full([_ROWS], float("-inf"), gl.float32, layout)
        total = gl.zeros([_ROWS], gl.float32, layout)
        mixed = gl.zeros([_ROWS, _HEAD_DIM], gl.float32, _LAYOUT)
        weights, maximum, total, _ = _softmax(scores, maximum, total, positions, scale, True)
        weights = _as_operand(weights, keys.tiles.dtype)
        for i in range(1, num_whole):
            weights, maximum, total, mixed = _step(
                query, keys, values, count + i, weights, maximum, total, mixed, positions, scale,
                IS_MASKED=False,
            )  # fmt: skip
        for i in range(gl.maximum(num_whole, 1), num_key_tiles):
            weights, maximum, total, mixed = _step(
                query, keys, values, count + i, weights, maximum, total, mixed,
                positions - i * _TILE, scale, IS_MASKED=True,
            )  # fmt: skip
        queries.release(NUMBER)
        count += num_key_tiles
        values.wait_full(count - 1)
        mixed = warpgroup_mma(weights, values.tile(count - 1), mixed, is_async=True)
        mixed, weights = warpgroup_mma_wait(0, deps=[mixed, weights])
        values.release(count - 1)
        _store(mixed / total[:, None], work, first_token, out, NUM_KV_HEADS)


@gluon.jit
def _step(
    query, keys, values, count, weights, maximum, total, mixed, positions, scale,
    IS_MASKED: gl.constexpr,
):  # fmt: skip
    """Adds tile `count` of keys to the softmax, and the values of the tile before it."""
    keys.wait_full(count)
    scores = _start_scores(query, keys.tile(count))
    values.wait_full(count - 1)
    mixed = warpgroup_mma(weights, values.tile(count - 1), mixed, is_async=True)
    scores = warpgroup_mma_wait(1, deps=[scores])
    keys.release(count)
    new_weights, maximum, total, correction = _softmax(
        scores, maximum, total, positions, scale, IS_MASKED
    )
    mixed, weights = warpgroup_mma_wait(0, deps=[mixed, weights])
    values.release(count - 1)
    mixed = mixed * correction[:, None]
    weights = _as_operand(new_weights, keys.tiles.dtype)
    return weights, maximum, total, mixed


@gluon.jit
def _start_scores(query, key):
    """Starts query times key transposed, [rows, tile]."""
    zeros = gl.zeros([_ROWS, _TILE], gl.float32, _LAYOUT)
    return warpgroup_mma(query, key.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _softmax(scores, maximum, total, positions, scale, IS_MASKED: gl.constexpr):
    """Adds scores [rows, tile] to maximum and total, as `attention_tile.accumulate` does.

    Returns the weights, [rows, tile], and the factor for earlier results. Positions are relative to
    the tile's first key.
    """
    if IS_MASKED:
        keys = gl.arange(0, _TILE, gl.SliceLayout(0, _LAYOUT))
        scores = gl.where(keys[None, :] <= positions[:, None], scores, float("-inf"))
    new_maximum = gl.maximum(maximum, gl.max(scores, axis=1) * scale)
    weights = gl.exp2(scores * scale - new_maximum[:, None])
    correction = gl.exp2(maximum - new_maximum)
    return weights, new_maximum, total * correction + gl.sum(weights, axis=1), correction


@gluon.jit
def _as_operand(weights, dtype: gl.constexpr):
    """Makes weights the left operand of a product; they are in the right registers already."""
    layout: gl.constexpr = gl.DotOperandLayout(0, _LAYOUT, 2)
    return gl.convert_layout(weights.to(dtype), layout, assert_trivial=True)


@gluon.jit
def _store(mixed, work, first_token, out, NUM_KV_HEADS: gl.constexpr):
    """Stores [rows, head_dim] to the output, 16 bytes per thread."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    result = gl.convert_layout(mixed.to(out.dtype.element_ty), layout)
    rows = gl.arange(0, _ROWS, gl.SliceLayout(1, layout))
    dims = gl.arange(0, _HEAD_DIM, gl.SliceLayout(0, layout))
    tokens = first_token + rows // work.GROUP
    heads = work.kv_head * work.GROUP + rows % work.GROUP
    query_rows = (work.query_start + tokens).to(gl.int64)
    places = (query_rows * (NUM_KV_HEADS * work.GROUP) + heads) * _HEAD_DIM
    is_row = tokens < work.query_len
    gl.store(out + places[:, None] + dims[None, :], result, mask=is_row[:, None])


@gluon.jit
def _produce(
    work, query_ring, keys, values, tail_full, queries, kv, table,
    first_row, half_rows, block_rows, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """Fetches the query tiles and, for each, all keys and values that it sees."""
    count = 0
    for number in range(work.num_tiles()):
        first_token, num_key_tiles = work.tile(number)
        first_query = work.query_start + first_token
        block, second_block = _load_blocks(table, 0, work.seq_len, BLOCK_SIZE)
        for half in gl.static_range(2):
            query_ring.wait_empty(2 * number + half)
            mbarrier.expect(query_ring.full_barrier(half), queries.block_type.nbytes)
            tile = query_ring.tile(half)
            tma.async_copy_global_to_shared(
                queries,
                [first_query + half * (work.TOKENS // 2), work.kv_head * work.GROUP, 0],
                query_ring.full_barrier(half),
                tile._reinterpret(queries.dtype, queries.block_type.shape, queries.layout),
            )
        for i in range(num_key_tiles):
            start = i * _TILE
            row = first_row + block * block_rows + start % BLOCK_SIZE
            second_row = first_row + second_block * block_rows + (start + _PIECE) % BLOCK_SIZE
            # Load the next block numbers while this tile waits for room.
            block, second_block = _load_blocks(table, start + _TILE, work.seq_len, BLOCK_SIZE)

            keys.wait_empty(count + i)
            _start_copy(kv, row, second_row, keys, count + i, keys.full_barrier(count + i))
            values.wait_empty(count + i)
            value_row = half_rows + row
            second_value_row = half_rows + second_row
            full = values.full_barrier(count + i)
            num_written = work.seq_len - start
            if num_written >= _TILE:
                _start_copy(kv, value_row, second_value_row, values, count + i, full)
            else:
                # Unwritten entries may hold anything, and 0 * NaN is NaN.
                _start_copy(kv, value_row, second_value_row, values, count + i, tail_full)
                mbarrier.wait(tail_full, number & 1)
                _clear_rows(values.tile(count + i), num_written)
                fence_async_shared()
                mbarrier.arrive(full)
        count += num_key_tiles


@gluon.jit
def _load_blocks(table, start, seq_len, BLOCK_SIZE: gl.constexpr):
    """Returns the blocks of a tile's two pieces; past the sequence's end, its last block."""
    first = gl.load(table + gl.minimum(start, seq_len - 1) // BLOCK_SIZE)
    second = gl.load(table + gl.minimum(start + _PIECE, seq_len - 1) // BLOCK_SIZE)
    return first, second


@gluon.jit
def _start_copy(kv, row, second_row, ring, count, barrier):
    """Starts the copies of a tile's pieces, placed in shared memory by the tile's layout.

    The layout holds the first dimensions of all tokens, one piece wide, then the next dimensions.
    """
    NUM_PARTS: gl.constexpr = _HEAD_DIM // _PIECE
    tile = ring.tile(count)
    pieces = tile._reinterpret(kv.dtype, [2 * NUM_PARTS, _PIECE, _PIECE], kv.layout)
    mbarrier.expect(barrier, 2 * NUM_PARTS * kv.block_type.nbytes)
    for part in gl.static_range(NUM_PARTS):
        tma.async_copy_global_to_shared(kv, [row, part * _PIECE], barrier, pieces.index(2 * part))
        tma.async_copy_global_to_shared(
            kv, [second_row, part * _PIECE], barrier, pieces.index(2 * part + 1)
        )


@gluon.jit
def _clear_rows(tile, first):
    """Sets the rows of a tile from `first` on to 0, a few at a time, since registers are few."""
    STEP: gl.constexpr = 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [1, 1], [1, 0])
    for start in gl.static_range(0, _TILE, STEP):
        rows = tile.slice(start, STEP)
        is_kept = start + gl.arange(0, STEP, gl.SliceLayout(1, layout)) < first
        rows.store(gl.where(is_kept[:, None], rows.load(layout), 0.0))
