"""What the ways of the all-reduce share: where ranks write, and what becomes of sums."""

import triton
import triton.language as tl


@triton.jit
def area(
    areas, index: tl.constexpr, rank, WORLD_SIZE: tl.constexpr, dtype: tl.constexpr
) -> tl.tensor:
    """Returns where an area of a rank begins.

    Args:
        areas: addresses, as of `PeerMemory`
        index: of the area
        rank: whose memory
        WORLD_SIZE: number of ranks
        dtype: of what the area holds
    """
    address = tl.load(areas + index * WORLD_SIZE + rank)
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def residual_rows(residual, places, is_inside, HAS_NORM: tl.constexpr) -> tl.tensor:
    """Returns what is added to the sums, to be read before the wait for peers.

    Args:
        residual: the residual; None without a norm
        places: [COLUMNS] or [rows, COLUMNS], of its elements
        is_inside: of the same shape, those that there are; others are 0
        HAS_NORM: whether a norm follows; 0 without one
    """
    added = 0.0
    if HAS_NORM:
        added = tl.load(residual + places, mask=is_inside, other=0.0).to(tl.float32)
    return added


@triton.jit
def store_rows(
    rounded,
    scale,
    out,
    total,
    places,
    is_inside,
    hidden,
    eps,
    dtype: tl.constexpr,
    HAS_NORM: tl.constexpr,
) -> None:
    """Stores sums, and their norm as `rms_norm.add_rms_norm` computes it.

    Args:
        rounded: [COLUMNS] or [rows, COLUMNS], the sums
        scale: of the norm, of a shape that fits
        out: receives the norm, or the sums without one
        total: receives the sums if there is a norm
        places: of the elements in both
        is_inside: those that there are
        hidden: elements of a row
        eps: added to the mean square
        dtype: of the results
        HAS_NORM: whether to compute the norm
    """
    if HAS_NORM:
        tl.store(total + places, rounded, mask=is_inside)
        wide = rounded.to(tl.float32)
        square_sums = tl.sum(wide * wide, axis=len(wide.shape) - 1, keep_dims=True)
        inverse_rms = tl.rsqrt(square_sums / hidden + eps)
        normed = (wide * inverse_rms).to(dtype).to(tl.float32)
        rounded = (normed * scale.to(tl.float32)).to(dtype)
    tl.store(out + places, rounded, mask=is_inside)


@triton.jit
def begin_time(nanoseconds, IS_TIMED: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Returns the time of the collectives before, and the clock; nobody waits for them here.

    Args:
        nanoseconds: of `PeerMemory`
        IS_TIMED: whether there is a clock; zeros without one
    """
    before = tl.zeros([], tl.int64)
    begun_at = before
    if IS_TIMED:
        before = tl.load(nanoseconds)
        begun_at = tl.extra.cuda.globaltimer()
    return before, begun_at


@triton.jit
def end_time(nanoseconds, before, begun_at, IS_TIMED: tl.constexpr) -> None:
    """Adds the time of this one. The first program has a row of each, and speaks for all.

    Args:
        nanoseconds: of `PeerMemory`
        before: of `begin_time`
        begun_at: likewise
        IS_TIMED: whether there is a clock
    """
    if IS_TIMED:
        time = before + tl.extra.cuda.globaltimer() - begun_at
        tl.store(nanoseconds, time, mask=tl.program_id(0) == 0)
