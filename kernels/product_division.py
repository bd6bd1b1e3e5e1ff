"""How programs divide a product of up to 64 rows: which of them multiplies which weights.

Outputs are divided into tiles, and the inputs of a tile into steps. Each program takes as many
steps that follow each other, of one tile or several. Several may share a tile.

With few tiles, multiprocessors have no work. There are two ways to more programs: tiles of fewer
outputs, which fetch the rows more often, and shares of a tile, which must be added up. The numbers
below are those with which layers of Qwen3-0.6B to 8B, of 8B and 32B over 2 GPUs, and of 32B over 4
were the fastest on an H200.
"""

import functools
from dataclasses import dataclass, replace

import triton

BLOCK_M = 64
"""Rows of the matrix instruction: the outputs of a tile times the parts of their inputs. Half of
those of a gated product are gates, and half what they multiply."""
BLOCK_IN = 128
"""Inputs of a step. 64 need twice the barriers, and are 2 to 8 % slower."""
MAX_SHARED_TILES = 1024
"""Of a product whose tiles are shared: each has a counter."""
MIN_ROWS = 8
"""Rows that are computed at least."""
_NUM_IN_PARTS = (1, 2, 4)
# With few steps of weights in all, a product waits for its rows and its end rather than for memory:
# each further program adds more to that than it takes from the reading.
_FEW_STEPS = 1100
_NUM_PROGRAMS_OF_FEW_STEPS = 45
# Below this, too few copies are under way.
_MIN_PROGRAMS = 30
# Shorter shares of a tile take less time than it takes to add them up. More are added one by one.
_MIN_STEPS_OF_SHARE = 12
_MAX_SHARES = 4
# Programs are given equally many steps, of one tile and the next, where whole tiles would leave
# multiprocessors without work: a larger part of them for many rows, whose sums are larger.
_MAX_ROWS_OF_SMALL_SUMS = 32
_MIN_USE_TO_SPREAD, _MAX_USE_TO_SPREAD, _MAX_USE_TO_SPREAD_LARGE_SUMS = 1 / 2, 9 / 10, 2 / 3
_MIN_STEPS_TO_SPREAD, _MIN_STEPS_TO_SPREAD_LARGE_SUMS = 48, 72
# With more tiles than multiprocessors: 128 programs were as fast as 132, and 3 % faster where they
# have a tile and a half each.
_PROGRAMS_ARE_A_MULTIPLE_OF = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """The division of one product.

    Attributes:
        block_out: outputs of a tile
        num_in_parts: parts of the inputs that a program multiplies at once, side by side
        num_tiles: tiles of outputs
        num_steps: steps of a tile
        num_programs: programs
        max_shares: how many programs at most share a tile; with 1, programs have whole tiles
    """

    block_out: int
    num_in_parts: int
    num_tiles: int
    num_steps: int
    num_programs: int
    max_shares: int


def padded(num_rows: int) -> int:
    """Returns how many rows are computed for 1 to 64."""
    return max(MIN_ROWS, int(triton.next_power_of_2(num_rows)))


@functools.cache
def divide(
    num_outs: int, in_features: int, padded_rows: int, num_multiprocessors: int, *, is_gated: bool
) -> Division:
    """Returns the division of a product.

    Args:
        num_outs: outputs, at least 1; gated ones, of which each takes two rows of the weight
        in_features: inputs, at least 1
        padded_rows: what `padded` returns for the number of rows: 8, 16, 32 or 64
        num_multiprocessors: those of the GPU
        is_gated: whether the outputs are gated
    """
    weight_steps = triton.cdiv(in_features, BLOCK_IN) * (2 if is_gated else 1)
    wanted = num_multiprocessors
    if triton.cdiv(num_outs, BLOCK_M) * weight_steps <= _FEW_STEPS:
        wanted = _NUM_PROGRAMS_OF_FEW_STEPS
    # A gated product has no smaller tiles, as two parts of its outputs are side by side already.
    all_num_parts = (1,) if is_gated else _NUM_IN_PARTS
    whole, *smaller = (
        _divide_evenly(
            num_outs, in_features, BLOCK_M // num_parts // (2 if is_gated else 1), num_parts,
            num_multiprocessors,
        )
        for num_parts in all_num_parts
        if num_parts == 1 or num_parts * padded_rows <= BLOCK_M
    )  # fmt: skip
    has_small_sums = padded_rows <= _MAX_ROWS_OF_SMALL_SUMS
    if whole.num_tiles > num_multiprocessors:
        is_spread = has_small_sums or weight_steps >= _MIN_STEPS_TO_SPREAD_LARGE_SUMS
        if whole.num_tiles > MAX_SHARED_TILES or not is_spread:
            return whole
        excess = num_multiprocessors % _PROGRAMS_ARE_A_MULTIPLE_OF
        return _spread(whole, (num_multiprocessors - excess) or num_multiprocessors)
    best = max(
        (division for division in (whole, *smaller) if division.num_tiles <= num_multiprocessors),
        key=lambda division: (min(division.num_programs, wanted), -division.max_shares),
    )
    use = best.num_programs / num_multiprocessors
    max_use = _MAX_USE_TO_SPREAD if has_small_sums else _MAX_USE_TO_SPREAD_LARGE_SUMS
    is_spread = best.max_shares == 1 and _MIN_USE_TO_SPREAD < use < max_use
    if is_spread and weight_steps >= _MIN_STEPS_TO_SPREAD:
        return _spread(best, num_multiprocessors)
    return best


def _divide_evenly(
    num_outs: int, in_features: int, block_out: int, num_in_parts: int, num_multiprocessors: int
) -> Division:
    """Returns a division in which programs have whole tiles, or equal shares of one."""
    num_tiles = triton.cdiv(num_outs, block_out)
    num_steps = triton.cdiv(in_features, num_in_parts * BLOCK_IN)
    num_shares = min(num_multiprocessors // num_tiles, num_steps // _MIN_STEPS_OF_SHARE)
    if num_tiles <= num_multiprocessors:
        num_shares = max(num_shares, triton.cdiv(_MIN_PROGRAMS, num_tiles))
    num_shares = max(1, min(num_shares, num_steps, _MAX_SHARES))
    num_rounds = triton.cdiv(num_tiles, num_multiprocessors)
    return Division(
        block_out=block_out,
        num_in_parts=num_in_parts,
        num_tiles=num_tiles,
        num_steps=num_steps,
        num_programs=triton.cdiv(num_tiles, num_rounds) * num_shares,
        max_shares=num_shares,
    )


def _spread(division: Division, num_programs: int) -> Division:
    """Returns a division of the same tiles in which all programs have equally many steps."""
    num_steps = division.num_steps
    total = division.num_tiles * num_steps
    programs = [((step + 1) * num_programs - 1) // total for step in range(total)]
    starts = range(0, total, num_steps)
    max_shares = max(programs[start + num_steps - 1] - programs[start] + 1 for start in starts)
    return replace(division, num_programs=num_programs, max_shares=max_shares)
