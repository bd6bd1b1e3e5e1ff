"""What a product for Hopper copies to shared memory: its weights before its rows are ready.

The copies are those of one warp, while others multiply (`linear_hopper.py`).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from kernels.dependent_launch import launch_dependents, wait_for_kernel_in_front
from kernels.product_division import BLOCK_IN, BLOCK_M

PIECE = gl.constexpr(64)
"""Inputs of one copy: a swizzled row of shared memory is that wide."""
_BLOCK_M = gl.constexpr(BLOCK_M)
_BLOCK_IN = gl.constexpr(BLOCK_IN)


@gluon.jit
def copy_steps(
    x, weight, weights, ring, num_steps, num_outs, first, last,
    IN_PARTS: gl.constexpr, IS_GATED: gl.constexpr, IS_DEPENDENT: gl.constexpr,
) -> None:  # fmt: skip
    """Fetches the weights and rows of steps `first` to `last`, and lets the next kernel start.

    Args:
        x: descriptor of the rows, in boxes of [rows, PIECE]
        weight: descriptor of the weight, in boxes of [outputs of a tile, PIECE]
        weights: [stages, BLOCK_M, BLOCK_IN], receives the weights of a step
        ring: its tiles [stages, IN_PARTS * rows, BLOCK_IN] receive the rows of a step
        num_steps: steps of a tile
        num_outs: outputs of the product
        first: index of the first step in the product
        last: index behind the last
        IN_PARTS: parts of the inputs that are multiplied side by side
        IS_GATED: whether the weight has `num_outs` further rows, of what the gates multiply
        IS_DEPENDENT: whether to wait for the kernel in front before rows are fetched
    """
    STAGES: gl.constexpr = ring.tiles.shape[0]
    num_early = gl.minimum(last - first, STAGES)
    for i in range(num_early):
        _start_weights(
            x, weight, weights, ring, i, first + i, num_steps, num_outs, IN_PARTS, IS_GATED
        )
    if IS_DEPENDENT:
        # If the next kernel is a product, too, it takes its time to start, and has weights to read.
        launch_dependents()
        wait_for_kernel_in_front()
    for i in range(num_early):
        _start_rows(x, ring, i, first + i, num_steps, IN_PARTS)
    for i in range(num_early, last - first):
        ring.wait_empty(i)
        _start_weights(
            x, weight, weights, ring, i, first + i, num_steps, num_outs, IN_PARTS, IS_GATED
        )
        _start_rows(x, ring, i, first + i, num_steps, IN_PARTS)


@gluon.jit
def _start_weights(
    x, weight, weights, ring, count, step, num_steps, num_outs,
    IN_PARTS: gl.constexpr, IS_GATED: gl.constexpr,
):  # fmt: skip
    """Starts the copies of the weights of a step; its barrier then waits for the rows, too."""
    NUM_PIECES: gl.constexpr = _BLOCK_IN // PIECE
    BLOCK_OUT: gl.constexpr = weight.block_type.shape[0]
    PARTS: gl.constexpr = _BLOCK_M // BLOCK_OUT
    num_bytes: gl.constexpr = IN_PARTS * x.block_type.nbytes + PARTS * weight.block_type.nbytes
    barrier = ring.full_barrier(count)
    mbarrier.expect(barrier, NUM_PIECES * num_bytes)
    tile = weights.index(count % weights.shape[0])
    row = step // num_steps * BLOCK_OUT
    if IS_GATED:
        _start_copies(weight, row, num_outs, tile, barrier, step % num_steps, 0, PARTS)
    else:
        _start_copies(weight, row, 0, tile, barrier, step % num_steps, num_steps, PARTS)


@gluon.jit
def _start_rows(x, ring, count, step, num_steps, IN_PARTS: gl.constexpr):
    barrier = ring.full_barrier(count)
    _start_copies(x, 0, 0, ring.tile(count), barrier, step % num_steps, num_steps, IN_PARTS)


@gluon.jit
def _start_copies(
    source, row, row_distance, tile, barrier, step, step_distance, PARTS: gl.constexpr
):
    """Starts the copies of the parts of a step, to below each other in the tile.

    Parts are `row_distance` rows and `step_distance` steps of inputs apart. The layout of the tile
    holds the first inputs of all rows, one piece wide, then the next ones.
    """
    NUM_PIECES: gl.constexpr = _BLOCK_IN // PIECE
    shape: gl.constexpr = source.block_type.shape
    pieces = tile._reinterpret(
        source.dtype, [NUM_PIECES * PARTS, shape[0], shape[1]], source.layout
    )
    for part in gl.static_range(PARTS):
        column = (part * step_distance + step) * _BLOCK_IN
        for piece in gl.static_range(NUM_PIECES):
            tma.async_copy_global_to_shared(
                source,
                [row + part * row_distance, column + piece * PIECE],
                barrier,
                pieces.index(piece * PARTS + part),
            )
