"""Code for tiles of keys and values, shared by the attention kernels.

A tile is TILE consecutive tokens of a sequence, starting at a multiple of TILE or behind a prefix.
"""

import triton
import triton.language as tl


@triton.jit
def cache_offsets(
    table,
    start,
    end,
    block_stride,
    token_stride,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    IS_WHOLE: tl.constexpr = False,
) -> tl.tensor:
    """Returns [TILE] int64, the offsets within a half of the cache of the tokens from start on.

    table is the sequence's row of the block table. For tokens from end on it is not read, unless
    IS_WHOLE says that there are none; their offsets are undefined.
    """
    tokens = start + tl.arange(0, TILE)
    if BLOCK_SIZE % TILE == 0:
        is_read = None if IS_WHOLE else start < end
        block = tl.load(table + start // BLOCK_SIZE, mask=is_read).to(tl.int64)
        offsets = (start % BLOCK_SIZE + tl.arange(0, TILE)).to(tl.int64)
        return block * block_stride + offsets * token_stride
    else:  # noqa: RET505 - a branch of the compiler's
        is_read = None if IS_WHOLE else tokens < end
        blocks = tl.load(table + tokens // BLOCK_SIZE, mask=is_read).to(tl.int64)
        return blocks * block_stride + (tokens % BLOCK_SIZE).to(tl.int64) * token_stride


@triton.jit
def hide_before(scores, start, first_seen, TILE: tl.constexpr, WINDOW: tl.constexpr) -> tl.tensor:
    """Returns scores [rows, TILE] of the tokens from start on without those before first_seen."""
    if WINDOW > 0:
        is_seen = start + tl.arange(0, TILE) >= first_seen
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
    return scores


@triton.jit
def accumulate(
    scores, values, maximum, total, mixed, scale, MAY_SEE_NONE: tl.constexpr = False
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Adds one more tile to the softmax. Source: FlashAttention-2 (Dao, 2023), section 3.1.

    scores [rows, TILE] are before scaling, -inf where a row does not see a key; each row must see a
    key in its first tile, unless MAY_SEE_NONE. scale is positive and includes log2(e), as the
    powers are of 2. maximum [rows] is the largest scaled score so far, total [rows] the sum of
    weights and mixed [rows, head_dim] the weighted sum of values, both relative to it.
    """
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale)
    base = new_maximum
    if MAY_SEE_NONE:
        # -inf - -inf is NaN.
        base = tl.where(new_maximum > float("-inf"), new_maximum, 0.0)
    weights = tl.exp2(scores * scale - base[:, None])
    correction = tl.exp2(maximum - base)
    total = total * correction + tl.sum(weights, axis=1)
    mixed = mixed * correction[:, None]
    mixed = tl.dot(weights.to(values.dtype), values, mixed, input_precision="ieee")
    return new_maximum, total, mixed


@triton.jit
def nothing_seen(
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Returns maximum, total and mixed of `accumulate` before the first key."""
    return (
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
        tl.zeros([ROWS, HEAD_DIM], tl.float32),
    )


@triton.jit
def _attend_to_tile(
    query,
    keys,
    values,
    offsets,
    tile_start,
    end,
    first_seen,
    maximum,
    total,
    mixed,
    scale,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    IS_WHOLE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Adds the tile whose tokens are at the offsets, up to end unless IS_WHOLE."""
    dims = tl.arange(0, HEAD_DIM)
    if IS_WHOLE:
        key = tl.load(keys + offsets[None, :] + dims[:, None])  # [HEAD_DIM, TILE]
        value = tl.load(values + offsets[:, None] + dims[None, :])  # [TILE, HEAD_DIM]
        scores = tl.dot(query, key, input_precision="ieee")  # [rows, TILE]
    else:
        is_token = tile_start + tl.arange(0, TILE) < end
        key = tl.load(keys + offsets[None, :] + dims[:, None], mask=is_token[None, :], other=0.0)
        value = tl.load(
            values + offsets[:, None] + dims[None, :], mask=is_token[:, None], other=0.0
        )
        scores = tl.dot(query, key, input_precision="ieee")
        scores = tl.where(is_token[None, :], scores, float("-inf"))
    scores = hide_before(scores, tile_start, first_seen, TILE, WINDOW)
    maximum, total, mixed = accumulate(scores, value, maximum, total, mixed, scale)
    return maximum, total, mixed


@triton.jit
def attend_to_keys(
    query,
    keys,
    values,
    table,
    start,
    end,
    first_seen,
    block_stride,
    token_stride,
    scale,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_LONG_SPLITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Attends from rows that see the same keys, those from start to end.

    query is [ROWS, HEAD_DIM]; keys and values are where those of its head begin. With a window, no
    row sees tokens before first_seen. HAS_LONG_SPLITS takes the last tile out of the loop if it may
    not be whole: its keys are then not read ahead, but the others' are not compared with the end.
    Returns the mixed values [ROWS, HEAD_DIM] and the logarithms to base 2 of the sums of weights
    [ROWS]: zeros and -inf without any token.
    """
    maximum, total, mixed = nothing_seen(ROWS, HEAD_DIM)
    # Each tile's place is read one tile ahead: the compiler need not wait for it before it asks for
    # keys and values that are several tiles ahead.
    offsets = cache_offsets(table, start, end, block_stride, token_stride, BLOCK_SIZE, TILE)
    loop_end = end
    if HAS_LONG_SPLITS:
        loop_end = start + tl.maximum(end - start, 0) // TILE * TILE
    for tile_start in range(start, loop_end, TILE):
        following = cache_offsets(
            table, tile_start + TILE, end, block_stride, token_stride, BLOCK_SIZE, TILE
        )
        maximum, total, mixed = _attend_to_tile(
            query, keys, values, offsets, tile_start, end, first_seen, maximum, total, mixed, scale,
            HEAD_DIM, TILE, WINDOW, HAS_LONG_SPLITS,
        )  # fmt: skip
        offsets = following
    if loop_end < end:
        maximum, total, mixed = _attend_to_tile(
            query, keys, values, offsets, loop_end, end, first_seen, maximum, total, mixed, scale,
            HEAD_DIM, TILE, WINDOW, IS_WHOLE=False,
        )  # fmt: skip
    divisor = tl.where(total > 0.0, total, 1.0)
    return mixed / divisor[:, None], maximum + tl.log2(divisor)
