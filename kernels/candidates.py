"""The largest entries of rows of scores, found without sorting the rows.

Each row is divided into groups. The k-th largest of the groups' maxima is not above the row's k-th
largest entry, and close to it, so that little more than k entries reach it. Those are the
candidates, and the rest of a row need not be read again.
"""

import torch
import triton
import triton.language as tl

GROUP = 64
"""Entries of a group."""
TILE = 4096
"""Entries of a program."""
CAPACITY = 2048
"""Most candidates of a row. A row with more, such as one of equal entries, is searched whole."""
TOO_MANY = CAPACITY + 1


def unused_bits(dtype: torch.dtype) -> int:
    """Returns how many low bits are equal in all ordered scores of a type, but for the sign."""
    return {torch.bfloat16: 16, torch.float16: 13}.get(dtype, 0)


@triton.jit
def ordered(x, UNUSED: tl.constexpr) -> tl.tensor:
    """Converts float32 to int32 of the same order, without unused low bits; 0 and -0 are equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> UNUSED


@triton.jit
def unordered(key, UNUSED: tl.constexpr) -> tl.tensor:
    """Returns the least float32 with an ordered score."""
    bits = key << UNUSED
    x = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    # The bits of -inf, with others in place of the unused ones.
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def load_scores(scores, ids, vocab_size) -> tl.tensor:
    """Loads entries of a row as float32. NaN becomes +inf: either way there is no distribution."""
    x = tl.load(scores + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("inf"))


@triton.jit
def store_group_maxima(maxima, x, TILE: tl.constexpr, GROUP: tl.constexpr) -> None:
    """Stores the largest entry of each group of a tile."""
    groups = tl.arange(0, TILE // GROUP)
    tl.store(maxima + groups, tl.max(tl.reshape(x, (TILE // GROUP, GROUP)), axis=1))


@triton.jit
def kth_largest(keys, k) -> tl.tensor:
    """Returns the k-th largest of int32 keys, of which there are at least k."""
    low = tl.min(keys, axis=0).to(tl.int64)
    high = tl.max(keys, axis=0).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        enough = tl.sum((keys >= middle).to(tl.int32), axis=0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)
