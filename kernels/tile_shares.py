"""Tiles of a product that several programs share, each with some of the steps.

Each program leaves what it has summed, and the last one to come adds the shares up, in one order
(stream-K, Osama et al., 2023). No program waits for another.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from kernels.checks import check_dtype, check_shape
from kernels.product_division import MAX_SHARED_TILES, Division

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
    *,
    is_gated: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns where programs leave shares, and the counters: both None if no tile is shared.

    Args:
        division: the division of the product
        padded_rows: rows of a tile
        counters: of `make_counters`; None creates them
        device: the GPU
        is_gated: whether there are sums of the gates and of what they multiply
    """
    if division.max_shares == 1:
        return None, None
    # [num_programs, 2 tiles, 1 or 2 sums, padded_rows, block_out]: of the tiles of a program, only
    # the first and the last one can have others' steps, too.
    size = 2 * division.num_programs * padded_rows * division.block_out * (2 if is_gated else 1)
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
    total, up, tile, step, num_steps, num_tiles, partials, counters,
    MAX_SHARES: gl.constexpr, IS_GATED: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor, gl.tensor]:  # fmt: skip
    """Leaves this program's share of a tile.

    Args:
        total: [block_out, rows] float32, the share; of gated outputs, that of the gates
        up: the same of what the gates multiply; otherwise unused
        tile: index of the tile
        step: index of the share's first step in the product
        num_steps: steps of a tile
        num_tiles: tiles of the product
        partials: of `allocate_shares`
        counters: likewise
        MAX_SHARES: how many programs at most share a tile
        IS_GATED: whether outputs are gated

    Returns:
        whether it was the last one, and then the sums of all shares, as total and up
    """
    layout: gl.constexpr = total.type.layout
    BLOCK_OUT: gl.constexpr = total.shape[0]
    ROWS: gl.constexpr = total.shape[1]
    outs = gl.arange(0, BLOCK_OUT, gl.SliceLayout(1, layout))[:, None]
    rows = gl.arange(0, ROWS, gl.SliceLayout(0, layout))[None, :]
    places = partials + rows * BLOCK_OUT + outs
    num_all = num_tiles * num_steps
    tile_start = tile * num_steps
    program = gl.program_id(0)
    _store_share(total, up, places, program, step == tile_start, IS_GATED)
    first = ((tile_start + 1) * gl.num_programs(0) - 1) // num_all
    last = ((tile_start + num_steps) * gl.num_programs(0) - 1) // num_all
    _barrier()
    num_before = gl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
    is_last = num_before == last - first
    if is_last:
        gl.store(counters + tile, 0)
        own_total = total
        own_up = up
        for i in gl.static_range(MAX_SHARES):
            other = first + i
            other_start, _ = share_of(other, num_all)
            is_read = (other <= last) & (other != program)
            share, share_of_up = _load_share(
                places, other, other_start <= tile_start, is_read, BLOCK_OUT * ROWS, IS_GATED
            )
            share = gl.where(other == program, own_total, share)
            share_of_up = gl.where(other == program, own_up, share_of_up)
            total = share if i == 0 else total + share
            up = share_of_up if i == 0 else up + share_of_up
    return is_last, total, up


@gluon.jit
def _places_of(places, program, is_start, SIZE: gl.constexpr, IS_GATED: gl.constexpr):
    """Returns where a program leaves its share of a tile: of its last if it is the tile's start."""
    return places + (2 * program + is_start.to(gl.int32)) * (SIZE * (2 if IS_GATED else 1))


@gluon.jit
def _store_share(total, up, places, program, is_start, IS_GATED: gl.constexpr):
    SIZE: gl.constexpr = total.shape[0] * total.shape[1]
    mine = _places_of(places, program, is_start, SIZE, IS_GATED)
    gl.store(mine, total)
    if IS_GATED:
        gl.store(mine + SIZE, up)


@gluon.jit
def _load_share(places, program, is_start, is_read, SIZE: gl.constexpr, IS_GATED: gl.constexpr):
    theirs = _places_of(places, program, is_start, SIZE, IS_GATED)
    # Not from this multiprocessor's own cache, which may hold what was there before.
    total = gl.load(theirs, mask=is_read, other=0.0, cache_modifier=".cg")
    up = total
    if IS_GATED:
        up = gl.load(theirs + SIZE, mask=is_read, other=0.0, cache_modifier=".cg")
    return total, up
