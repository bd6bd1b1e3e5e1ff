"""Code for one tile of keys and values, shared by both attention kernels.

A tile is TILE consecutive tokens of a sequence, starting at a multiple of TILE.
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
    IS_WHOLE: tl.constexpr,
) -> tl.tensor:
    """Returns [TILE] int64, the offsets within a half of the cache of the tokens from start on.

    table is the sequence's row of the block table. For tokens from end on it is not read, unless
    IS_WHOLE says that there are none.
    """
    tokens = start + tl.arange(0, TILE)
    if BLOCK_SIZE % TILE == 0:
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
        offsets = (start % BLOCK_SIZE + tl.arange(0, TILE)).to(tl.int64)
        return block * block_stride + offsets * token_stride
    else:  # noqa: RET505 - a branch of the compiler's
        if IS_WHOLE:
            blocks = tl.load(table + tokens // BLOCK_SIZE).to(tl.int64)
        else:
            blocks = tl.load(table + tokens // BLOCK_SIZE, mask=tokens < end, other=0).to(tl.int64)
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
