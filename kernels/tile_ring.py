"""Tiles in shared memory that one warp of a program fills and other warps empty, in turn."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.language.core import _aggregate as aggregate


@aggregate
class TileRing:
    """A few tiles, each with a barrier for "full" and one for "empty".

    Tiles are counted over the program's whole life: tile `count` is tiles[count % stages].
    """

    tiles: gl.shared_memory_descriptor
    """[stages, ...]"""
    full: gl.shared_memory_descriptor
    """[stages, 1] int64"""
    empty: gl.shared_memory_descriptor
    """[stages, 1] int64"""

    @gluon.constexpr_function
    def __init__(self, tiles, full, empty) -> None:
        self.tiles = tiles
        self.full = full
        self.empty = empty

    @gluon.jit
    def tile(self, count) -> gl.shared_memory_descriptor:
        """Returns the memory of tile `count`."""
        return self.tiles.index(count % self.tiles.shape[0])

    @gluon.jit
    def full_barrier(self, count) -> gl.shared_memory_descriptor:
        """Returns the barrier that a copy into tile `count` must signal."""
        return self.full.index(count % self.tiles.shape[0])

    @gluon.jit
    def wait_full(self, count) -> None:
        """Waits until tile `count` is filled."""
        stages: gl.constexpr = self.tiles.shape[0]
        mbarrier.wait(self.full.index(count % stages), count // stages & 1)

    @gluon.jit
    def wait_empty(self, count) -> None:
        """Waits until there is room for tile `count`."""
        stages: gl.constexpr = self.tiles.shape[0]
        # An unused barrier counts as passed in the phase before its first.
        mbarrier.wait(self.empty.index(count % stages), (count // stages & 1) ^ 1)

    @gluon.jit
    def release(self, count) -> None:
        """Signals that this consumer no longer needs tile `count`."""
        mbarrier.arrive(self.empty.index(count % self.tiles.shape[0]))


@gluon.jit
def make_ring(tiles, NUM_CONSUMERS: gl.constexpr) -> TileRing:
    """Makes a ring of tiles [stages, ...], each read by NUM_CONSUMERS consumers."""
    stages: gl.constexpr = tiles.shape[0]
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(stages):
        mbarrier.init(full.index(stage), 1)
        mbarrier.init(empty.index(stage), NUM_CONSUMERS)
    ring: TileRing = TileRing(tiles, full, empty)
    return ring
