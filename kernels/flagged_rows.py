"""The all-reduce of more rows: they travel as they are, each followed by a flag.

A flag has the number of the round. The writer's threads meet, then one releases the flag at system
scope; the reader's acquires it, then its threads meet. The rounds of a row are the collectives of
both of these ways in which it takes part, counted on the device (`counts`).

One shot, for two ranks: each writes its rows into the other's memory and adds both parts. A program
has up to two rows side by side, and one flag for both, that of the first row.

* Round j of a row uses buffer j % 2, for its flag, too. A writer in round j has received round
  j - 1 from each peer. A peer sends round j - 1 only after its kernel of round j - 2 has ended
  (`wait_for_inputs`), and so has read the buffer that round j overwrites. A rank may be one round
  ahead, never two, and finds each flag before it is overwritten.
* Each number is written to a flag at most once, so nobody takes the flag of another round for that
  of this one: before it, the flag has a smaller number, as long as 2^32 rounds are far apart.

Two shots, for more ranks, each of which would send its rows to all others: row r is added by rank
r % world_size, which writes the total to the others. Parts use the same two buffers, and for the
same reason: who sends round j has received, from the owner of the row or from all, what they sent
after their round j - 2 had ended. An owner sends its next total only after it has received the next
part. So one buffer of totals is enough, and no flag of a total is ever ahead of its reader.

With two ranks, one shot sends as many bytes as two shots would, and nobody waits twice.
"""

import triton
import triton.language as tl

from kernels.dependent_launch import wait_for_inputs
from kernels.reduced_rows import area, begin_time, end_time, residual_rows, store_rows


@triton.jit
def _publish(flag, round_):
    """Writes a flag after everything that the program has written so far."""
    tl.debug_barrier()
    tl.atomic_xchg(flag, round_.to(tl.int32), sem="release", scope="sys")


@triton.jit
def _wait_for(flag, round_):
    """Waits for a flag, before everything that the program reads from now on."""
    while tl.atomic_add(flag, 0, sem="acquire", scope="sys") != round_.to(tl.int32):
        pass
    tl.debug_barrier()


@triton.jit
def _place_of_part(round_, row, source, owner, max_rows, WORLD_SIZE: tl.constexpr):
    """Returns where the owner of memory receives the part of another rank, and its flag."""
    peer = (source - owner - 1 + WORLD_SIZE) % WORLD_SIZE
    return (round_ % 2 * max_rows + row) * (WORLD_SIZE - 1) + peer


@triton.jit
def _sum_of_parts(
    own, parts, flags, rows, rounds, row, round_, columns, is_inside,
    rank, max_rows, hidden, WORLD_SIZE: tl.constexpr,
):  # fmt: skip
    """Adds the parts of rows in the order of ranks, each when the flag of `row` is there."""
    wide = tl.zeros(own.shape, tl.float32)
    for source in tl.static_range(WORLD_SIZE):
        if source != rank:
            _wait_for(
                flags + _place_of_part(round_, row, source, rank, max_rows, WORLD_SIZE), round_
            )
        places = _place_of_part(rounds, rows, source, rank, max_rows, WORLD_SIZE) * hidden + columns
        part = tl.load(parts + places, mask=is_inside & (source != rank), other=0.0)
        wide += tl.where(source == rank, own, part).to(tl.float32)
    return wide


@triton.jit(do_not_specialize=["rank", "num_rows"])
def flagged_rows_kernel(
    x,
    residual,
    weight,
    out,
    total,
    areas,
    counts,
    nanoseconds,
    rank,
    num_rows,
    max_rows,
    x_stride,
    residual_stride,
    hidden,
    eps,
    WORLD_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_TIMED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    """Adds the rows of all ranks in one shot; the arguments are those of `all_reduce._launch`."""
    dtype: tl.constexpr = out.dtype.element_ty
    columns = tl.arange(0, COLUMNS)[None, :]
    is_column = columns < hidden
    scale = tl.load(weight + columns, mask=is_column, other=0.0) if HAS_NORM else 0.0
    own_parts = area(areas, 1, rank, WORLD_SIZE, dtype)
    own_flags = area(areas, 3, rank, WORLD_SIZE, tl.int32)
    first, step = tl.program_id(0).to(tl.int64) * ROWS, tl.num_programs(0) * ROWS
    wait_for_inputs(IS_DEPENDENT)
    before, begun_at = begin_time(nanoseconds, IS_TIMED)
    for row in range(first, num_rows, step):
        rows = row + tl.arange(0, ROWS)[:, None]
        is_inside = is_column & (rows < num_rows)
        rounds = tl.load(counts + rows, mask=rows < num_rows, other=0) + 1
        part = tl.load(x + rows * x_stride + columns, mask=is_inside, other=0.0)
        for peer in tl.static_range(WORLD_SIZE):
            places = _place_of_part(rounds, rows, rank, peer, max_rows, WORLD_SIZE)
            target = area(areas, 1, peer, WORLD_SIZE, dtype) + places * hidden + columns
            tl.store(target, part, mask=is_inside & (peer != rank))
        round_ = tl.load(counts + row) + 1
        for peer in tl.static_range(WORLD_SIZE):
            if peer != rank:
                place = _place_of_part(round_, row, rank, peer, max_rows, WORLD_SIZE)
                _publish(area(areas, 3, peer, WORLD_SIZE, tl.int32) + place, round_)
    for row in range(first, num_rows, step):
        rows = row + tl.arange(0, ROWS)[:, None]
        is_inside = is_column & (rows < num_rows)
        rounds = tl.load(counts + rows, mask=rows < num_rows, other=0) + 1
        added = residual_rows(residual, rows * residual_stride + columns, is_inside, HAS_NORM)
        own = tl.load(x + rows * x_stride + columns, mask=is_inside, other=0.0)
        round_ = tl.load(counts + row) + 1
        wide = _sum_of_parts(
            own, own_parts, own_flags, rows, rounds, row, round_, columns, is_inside,
            rank, max_rows, hidden, WORLD_SIZE,
        )  # fmt: skip
        rounded = (wide + added).to(dtype)
        here = rows * hidden + columns
        store_rows(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, HAS_NORM)
        tl.store(counts + rows, rounds, mask=rows < num_rows)
    end_time(nanoseconds, before, begun_at, IS_TIMED)


@triton.jit(do_not_specialize=["rank", "num_rows"])
def two_shots_kernel(
    x,
    residual,
    weight,
    out,
    total,
    areas,
    counts,
    nanoseconds,
    rank,
    num_rows,
    max_rows,
    x_stride,
    residual_stride,
    hidden,
    eps,
    WORLD_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_TIMED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    """Adds the rows of all ranks in two shots; the arguments are those of `all_reduce._launch`."""
    dtype: tl.constexpr = out.dtype.element_ty
    columns = tl.arange(0, COLUMNS)
    is_inside = columns < hidden
    scale = tl.load(weight + columns, mask=is_inside, other=0.0) if HAS_NORM else 0.0
    own_parts = area(areas, 1, rank, WORLD_SIZE, dtype)
    own_totals = area(areas, 2, rank, WORLD_SIZE, dtype)
    own_part_flags = area(areas, 3, rank, WORLD_SIZE, tl.int32)
    own_total_flags = area(areas, 4, rank, WORLD_SIZE, tl.int32)
    first, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    wait_for_inputs(IS_DEPENDENT)
    before, begun_at = begin_time(nanoseconds, IS_TIMED)
    # The rows of others: their owners get this rank's part.
    for row in range(first, num_rows, step):
        owner = row % WORLD_SIZE
        if owner != rank:
            round_ = tl.load(counts + row) + 1
            place = _place_of_part(round_, row, rank, owner, max_rows, WORLD_SIZE)
            part = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
            target = area(areas, 1, owner, WORLD_SIZE, dtype) + place * hidden
            tl.store(target + columns, part, mask=is_inside)
            _publish(area(areas, 3, owner, WORLD_SIZE, tl.int32) + place, round_)
    # This rank's rows: their totals go to all others.
    for row in range(first, num_rows, step):
        if row % WORLD_SIZE == rank:
            round_ = tl.load(counts + row) + 1
            added_place = row * residual_stride + columns
            added = residual_rows(residual, added_place, is_inside, HAS_NORM)
            own = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
            wide = _sum_of_parts(
                own, own_parts, own_part_flags, row, round_, row, round_, columns, is_inside,
                rank, max_rows, hidden, WORLD_SIZE,
            )  # fmt: skip
            rounded = (wide + added).to(dtype)
            here = row * hidden + columns
            for peer in tl.static_range(WORLD_SIZE):
                totals = area(areas, 2, peer, WORLD_SIZE, dtype)
                tl.store(totals + here, rounded, mask=is_inside & (peer != rank))
            for peer in tl.static_range(WORLD_SIZE):
                if peer != rank:
                    _publish(area(areas, 4, peer, WORLD_SIZE, tl.int32) + row, round_)
            store_rows(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, HAS_NORM)
            tl.store(counts + row, round_)
    # The rows of others again: their owners send the totals.
    for row in range(first, num_rows, step):
        if row % WORLD_SIZE != rank:
            round_ = tl.load(counts + row) + 1
            _wait_for(own_total_flags + row, round_)
            here = row * hidden + columns
            rounded = tl.load(own_totals + here, mask=is_inside, other=0.0)
            store_rows(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, HAS_NORM)
            tl.store(counts + row, round_)
    end_time(nanoseconds, before, begun_at, IS_TIMED)
