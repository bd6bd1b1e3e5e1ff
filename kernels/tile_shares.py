"""Tiles of a product that several programs share, each with some of the steps.

Each program leaves what it has summed, and the last one to come adds the shares up, in one order
(stream-K, Osama et al., 2023). No program waits for another.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.checks import check_dtype, check_shape
from kernels.product_division import BLOCK_M, MAX_SHARED_TILES, Division

_barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # renamed in Triton 3.7


def make_counters(device: torch.device | None = None) -> torch.Tensor:
    """Returns counters for the products with one weight, int32, all 0."""
    return torch.zeros(MAX_SHARED_TILES, dtype=torch.int32, device=device)


def check_counters(counters: torch.Tensor | None) -> None:
    """Raises ValueError unless they are None or like those of `make_counters`."""
    if counters is not None:
        check_dtype("counters", counters, torch.int32)
        check_shape("counters", counters, MAX_SHARED_TILES)


def allocate_shares(
    division: Division,
    padded_rows: int,
    counters: torch.Tensor | None,
    device: torch.device,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns where programs leave shares, and the counters: both None if no tile is shared.

    Args:
        division: the division of the product
        padded_rows: rows of a tile
        counters: of `make_counters`; None creates them
        device: the GPU
    """
    if division.max_shares == 1:
        return None, None
    # [num_programs, 2 tiles, padded_rows, sums of a row]: of the tiles of a program, only the first
    # and the last one can have others' steps, too.
    num_sums = BLOCK_M // division.num_in_parts
    size = 2 * division.num_programs * padded_rows * num_sums
    partials = torch.empty(size, dtype=torch.float32, device=device)
    if counters is None:
        counters = torch.zeros(division.num_tiles, dtype=torch.int32, device=device)
    return partials, counters


@gluon.jit
def share_of(program, num_all) -> tuple[gl.tensor, gl.tensor]:
    """Returns the first step, or tile, of a program, and the one after its last.

    Args:
        program: index of the program
        num_all: steps, or tiles, of the product
    """
    return program * num_all // gl.num_programs(0), (program + 1) * num_all // gl.num_programs(0)


@gluon.jit
def join_shares(
    total, tile, step, num_steps, num_tiles, partials, counters, MAX_SHARES: gl.constexpr
) -> tuple[gl.tensor, gl.tensor]:
    """Leaves this program's share of a tile.

    Args:
        total: [sums, rows] float32, the share
        tile: index of the tile
        step: index of the share's first step in the product
        num_steps: steps of a tile
        num_tiles: tiles of the product
        partials: of `allocate_shares`
        counters: likewise
        MAX_SHARES: how many programs at most share a tile

    Returns:
        whether it was the last one, and then the sums of all shares, as total
    """
    layout: gl.constexpr = total.type.layout
    NUM_SUMS: gl.constexpr = total.shape[0]
    ROWS: gl.constexpr = total.shape[1]
    sums = gl.arange(0, NUM_SUMS, gl.SliceLayout(1, layout))[:, None]
    rows = gl.arange(0, ROWS, gl.SliceLayout(0, layout))[None, :]
    places = partials + rows * NUM_SUMS + sums
    SIZE: gl.constexpr = NUM_SUMS * ROWS
    num_all = num_tiles * num_steps
    tile_start = tile * num_steps
    program = gl.program_id(0)
    gl.store(_places_of(places, program, step == tile_start, SIZE), total)
    first = ((tile_start + 1) * gl.num_programs(0) - 1) // num_all
    last = ((tile_start + num_steps) * gl.num_programs(0) - 1) // num_all
    _barrier()
    num_before = gl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
    is_last = num_before == last - first
    if is_last:
        gl.store(counters + tile, 0)
        own = total
        for i in gl.static_range(MAX_SHARES):
            other = first + i
            other_start, _ = share_of(other, num_all)
            is_read = (other <= last) & (other != program)
            theirs = _places_of(places, other, other_start <= tile_start, SIZE)
            # Not from this multiprocessor's own cache, which may hold what was there before.
            share = gl.load(theirs, mask=is_read, other=0.0, cache_modifier=".cg")
            share = gl.where(other == program, own, share)
            total = share if i == 0 else total + share
    return is_last, total


@gluon.jit
def _places_of(places, program, is_start, SIZE: gl.constexpr):
    """Returns where a program leaves its share of a tile: of its last if it is the tile's start."""
    return places + (2 * program + is_start.to(gl.int32)) * SIZE
