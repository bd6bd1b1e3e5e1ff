"""Linear projections of up to 64 rows on Hopper, at the speed at which memory delivers weights.

A producer warp fetches weights and rows with the bulk copy engine, as far ahead as shared memory
has room, and four warps multiply. The outputs are the rows of the matrix instruction, which has 64,
and the rows its columns. The producer does not wait for the kernel in front to fetch weights, so
memory is busy from one product to the next.

A product is divided into steps, of `_BLOCK_OUT` outputs by `_BLOCK_IN` inputs, and each program
takes as many that follow each other. If outputs are few, several programs share a tile of them:
each leaves what it has summed, and the last one to come adds the parts up, in one order (stream-K,
Osama et al., 2023).

A norm between two products needs no kernel of its own. The first product adds the residual,
multiplies by the norm's weight and sums the squares of its outputs. The second divides what it has
multiplied by the root mean square.
"""

import functools

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.attention_parts import num_multiprocessors
from kernels.dependent_launch import dependent_launch
from kernels.tile_ring import make_ring

_MAX_ROWS = 64
"""With more, cuBLAS is faster."""
_MIN_ROWS = 16
_BLOCK_OUT = gl.constexpr(64)
"""Outputs of a tile. Of a gated product, as many gates and as many that they multiply."""
_BLOCK_IN = gl.constexpr(128)
"""Inputs of a step. 64 need twice the barriers, and are 2 to 8 % slower on an H200."""
_SHARED_BYTES = 220 << 10
"""Of the 227 KiB that a program can have."""
_MAX_STAGES = 11
_NUM_COUNTERS = 512
_MAX_NORM_SIZE = 8192
# From which on the parts of a divided tile cost less than the multiprocessors without work.
_MIN_STEPS_OF_PART = 13
_MIN_STEPS_TO_SHARE = 48
_MAX_ROWS_TO_SHARE = 32
_MIN_PROGRAMS = 60
_MAX_PARTS = 4
_PRODUCER_REGISTERS = gl.constexpr(40)
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # renamed in Triton 3.7


def can_multiply(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Returns whether the kernel supports these arguments of `linear`."""
    return (
        x.is_cuda
        and torch.cuda.get_device_capability(x.device)[0] == 9
        and x.shape[0] <= _MAX_ROWS
        and x.dtype in (torch.float16, torch.bfloat16)
        # The copy engine needs addresses at multiples of 16 bytes.
        and all(tensor.stride(0) % 8 == 0 for tensor in (x, weight))
        and all(tensor.data_ptr() % 16 == 0 for tensor in (x, weight))
    )


def can_chain(x: torch.Tensor, weight: torch.Tensor, next_weight: torch.Tensor) -> bool:
    """Returns whether the kernel supports these arguments of `linear_norm_linear`."""
    return (
        can_multiply(x, weight)
        # What is multiplied before the division by the root mean square may overflow float16.
        and x.dtype == torch.bfloat16
        and weight.shape[0] % _BLOCK_OUT.value == 0
        and weight.shape[0] <= _MAX_NORM_SIZE
        and next_weight.stride(0) % 8 == 0
        and next_weight.data_ptr() % 16 == 0
    )


def make_counters(device: torch.device | None = None) -> torch.Tensor:
    """Returns counters for the products with one weight, int32, all 0."""
    return torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)


def multiply(
    x: torch.Tensor, weight: torch.Tensor, counters: torch.Tensor | None, *, is_gated: bool
) -> torch.Tensor:
    """Computes `linear`, or `gated_linear`, for arguments that `can_multiply` accepts."""
    num_outs = weight.shape[0] // 2 if is_gated else weight.shape[0]
    out = torch.empty((x.shape[0], num_outs), dtype=x.dtype, device=x.device)
    _launch(x, weight, out, counters, is_gated=is_gated)
    return out


def multiply_norm_multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    next_weight: torch.Tensor,
    counters: torch.Tensor | None,
    next_counters: torch.Tensor | None,
    *,
    is_gated: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes `linear_norm_linear` for arguments that `can_chain` accepts."""
    num_rows, hidden = x.shape[0], weight.shape[0]
    scaled = torch.empty((num_rows, hidden), dtype=x.dtype, device=x.device)
    new_residual = torch.empty_like(scaled)
    squares = torch.empty(
        (hidden // _BLOCK_OUT.value, num_rows), dtype=torch.float32, device=x.device
    )
    _launch(
        x, weight, scaled, counters,
        residual=residual, norm_weight=norm_weight, new_residual=new_residual, squares=squares,
    )  # fmt: skip
    num_outs = next_weight.shape[0] // 2 if is_gated else next_weight.shape[0]
    out = torch.empty((num_rows, num_outs), dtype=x.dtype, device=x.device)
    _launch(
        scaled, next_weight, out, next_counters, row_squares=squares, eps=eps, is_gated=is_gated
    )
    return out, new_residual


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    counters: torch.Tensor | None,
    *,
    residual: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    new_residual: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
    row_squares: torch.Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
) -> None:
    num_rows, in_features = x.shape
    num_outs = out.shape[1]
    if out.numel() == 0:
        return
    rows = max(_MIN_ROWS, triton.next_power_of_2(num_rows))
    num_tiles = triton.cdiv(num_outs, _BLOCK_OUT.value)
    num_steps = triton.cdiv(in_features, _BLOCK_IN.value)
    num_programs, num_parts = _divide(
        num_tiles, num_steps, rows, num_multiprocessors(x.device), is_gated=is_gated
    )
    partials = None
    if num_parts > 1:
        size = 2 * num_programs * (2 if is_gated else 1) * _BLOCK_OUT.value * rows
        partials = torch.empty(size, dtype=torch.float32, device=x.device)
        if counters is None:
            counters = torch.zeros(num_tiles, dtype=torch.int32, device=x.device)
    else:
        counters = None
    stage_bytes = 2 * _BLOCK_IN.value * (rows + _BLOCK_OUT.value * (2 if is_gated else 1))
    _linear_hopper_kernel[(num_programs,)](
        _describe(x, [rows, _BLOCK_IN.value]),
        _describe(weight, [_BLOCK_OUT.value, _BLOCK_IN.value]),
        row_squares,
        residual,
        norm_weight,
        out,
        new_residual,
        squares,
        partials,
        counters,
        0 if residual is None else residual.stride(0),
        num_rows,
        in_features,
        num_outs,
        num_tiles,
        eps,
        ROWS=rows,
        STAGES=min(_MAX_STAGES, _SHARED_BYTES // stage_bytes),
        NUM_SQUARES=0 if row_squares is None else triton.next_power_of_2(row_squares.shape[0]),
        MAX_PARTS=num_parts,
        IS_GATED=is_gated,
        num_warps=4,
        **dependent_launch(x),
    )


@functools.cache
def _divide(
    num_tiles: int, num_steps: int, num_rows: int, num_multiprocessors: int, *, is_gated: bool
) -> tuple[int, int]:
    """Returns how many programs compute a product, and how many at most share a tile."""
    weight_steps = num_steps * (2 if is_gated else 1)
    num_programs = num_tiles
    if num_tiles > num_multiprocessors:
        num_programs = triton.cdiv(num_tiles, triton.cdiv(num_tiles, num_multiprocessors))
        is_shared = num_tiles <= _NUM_COUNTERS
    else:
        num_parts = min(num_multiprocessors // num_tiles, num_steps // _MIN_STEPS_OF_PART)
        num_parts = max(1, num_parts, triton.cdiv(_MIN_PROGRAMS, num_tiles))
        num_parts = min(num_parts, num_steps, _MAX_PARTS)
        num_programs = num_tiles * num_parts
        is_shared = num_parts == 1 and weight_steps >= _MIN_STEPS_TO_SHARE
    is_shared &= num_rows <= _MAX_ROWS_TO_SHARE and 2 * num_tiles > num_multiprocessors
    if is_shared:
        num_programs = num_multiprocessors
    if num_programs <= num_tiles and not is_shared:
        return num_programs, 1
    total = num_tiles * num_steps

    def program_of(step: int) -> int:
        return ((step + 1) * num_programs - 1) // total

    starts = range(0, total, num_steps)
    return num_programs, max(
        program_of(start + num_steps - 1) - program_of(start) + 1 for start in starts
    )


def _describe(tensor: torch.Tensor, box: list[int]) -> TensorDescriptor:
    dtype = gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for(box, dtype)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), box, layout)


@gluon.jit(do_not_specialize=["num_rows", "in_features", "num_tiles"])
def _linear_hopper_kernel(
    x,
    weight,
    row_squares,
    residual,
    norm_weight,
    out,
    new_residual,
    squares,
    partials,
    counters,
    residual_stride,
    num_rows,
    in_features,
    num_outs,
    num_tiles,
    eps,
    ROWS: gl.constexpr,
    STAGES: gl.constexpr,
    NUM_SQUARES: gl.constexpr,
    MAX_PARTS: gl.constexpr,
    IS_GATED: gl.constexpr,
    IS_DEPENDENT: gl.constexpr,
):
    HALVES: gl.constexpr = 2 if IS_GATED else 1
    weights = gl.allocate_shared_memory(
        weight.dtype, [STAGES * HALVES, _BLOCK_OUT, _BLOCK_IN], weight.layout
    )
    ring = make_ring(gl.allocate_shared_memory(x.dtype, [STAGES, ROWS, _BLOCK_IN], x.layout), 1)
    fence_async_shared()
    num_steps = gl.cdiv(in_features, _BLOCK_IN)
    first, last = _share_of(gl.program_id(0), num_tiles * num_steps)
    if MAX_PARTS == 1:
        first, last = _share_of(gl.program_id(0), num_tiles)
        first, last = first * num_steps, last * num_steps
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    weights, ring, row_squares, residual, norm_weight, out, new_residual, squares,
                    partials, counters, residual_stride, num_rows, in_features, num_outs, num_tiles,
                    first, last, eps, NUM_SQUARES, MAX_PARTS, IS_GATED, IS_DEPENDENT,
                ),
            ),
            (_produce, (x, weight, weights, ring, num_steps, num_outs, first, last, IS_DEPENDENT)),
        ],
        [1],
        [_PRODUCER_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _share_of(program, num_all):
    """Returns the first step, or tile, of a program, and the one after its last."""
    return program * num_all // gl.num_programs(0), (program + 1) * num_all // gl.num_programs(0)


@gluon.jit
def _wait_for_inputs():
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _launch_dependents():
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // dummy $0",
        "=r", [], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _produce(
    x, weight, weights, ring, num_steps, num_outs, first, last, IS_DEPENDENT: gl.constexpr
):
    """Fetches the weights and rows of steps `first` to `last`."""
    STAGES: gl.constexpr = ring.tiles.shape[0]
    num_early = gl.minimum(last - first, STAGES)
    for i in range(num_early):
        _start_weights(x, weight, weights, ring, i, first + i, num_steps, num_outs)
    if IS_DEPENDENT:
        _wait_for_inputs()
        _launch_dependents()
    for i in range(num_early):
        _start_rows(x, ring, i, first + i, num_steps)
    for i in range(num_early, last - first):
        ring.wait_empty(i)
        _start_weights(x, weight, weights, ring, i, first + i, num_steps, num_outs)
        _start_rows(x, ring, i, first + i, num_steps)


@gluon.jit
def _start_weights(x, weight, weights, ring, count, step, num_steps, num_outs):
    """Starts the copies of the weights of a step; its barrier then waits for the rows, too."""
    STAGES: gl.constexpr = ring.tiles.shape[0]
    HALVES: gl.constexpr = weights.shape[0] // STAGES
    column = step % num_steps * _BLOCK_IN
    barrier = ring.full_barrier(count)
    mbarrier.expect(barrier, x.block_type.nbytes + HALVES * weight.block_type.nbytes)
    for half in gl.static_range(HALVES):
        row = half * num_outs + step // num_steps * _BLOCK_OUT
        place = weights.index(count % STAGES * HALVES + half)
        tma.async_copy_global_to_shared(weight, [row, column], barrier, place)


@gluon.jit
def _start_rows(x, ring, count, step, num_steps):
    column = step % num_steps * _BLOCK_IN
    tma.async_copy_global_to_shared(x, [0, column], ring.full_barrier(count), ring.tile(count))


@gluon.jit
def _consume(
    weights, ring, row_squares, residual, norm_weight, out, new_residual, squares,
    partials, counters, residual_stride, num_rows, in_features, num_outs, num_tiles, first, last,
    eps, NUM_SQUARES: gl.constexpr, MAX_PARTS: gl.constexpr, IS_GATED: gl.constexpr,
    IS_DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Multiplies steps `first` to `last`, and stores the tiles that are whole then."""
    ROWS: gl.constexpr = ring.tiles.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    num_steps = gl.cdiv(in_features, _BLOCK_IN)
    if NUM_SQUARES > 0:
        if IS_DEPENDENT:
            _wait_for_inputs()
        inverse_rms = _inverse_rms(
            row_squares, num_rows, in_features, eps, NUM_SQUARES, ROWS, gl.SliceLayout(0, layout)
        )
    count = 0
    step = first
    while step < last:
        tile = step // num_steps
        end = gl.minimum(last, (tile + 1) * num_steps)
        total, up = _multiply(weights, ring, count, end - step, layout, IS_GATED)
        count += end - step
        is_whole = end - step == num_steps
        if MAX_PARTS > 1 and end - step < num_steps:
            is_whole, total, up = _join_parts(
                total, up, tile, step, num_steps, num_tiles, partials, counters, ROWS, MAX_PARTS,
                IS_GATED,
            )  # fmt: skip
        if is_whole:
            if NUM_SQUARES > 0:
                total = total * inverse_rms[None, :]
                up = up * inverse_rms[None, :]
            result = _activated(total, up, out.dtype.element_ty, IS_GATED)
            _store(
                result, tile, residual, norm_weight, out, new_residual, squares, residual_stride,
                num_rows, num_outs, ROWS,
            )  # fmt: skip
        step = end


@gluon.jit
def _multiply(weights, ring, count, num_steps, LAYOUT: gl.constexpr, IS_GATED: gl.constexpr):
    """Returns the products of the next steps, [_BLOCK_OUT, ROWS]; if gated, those of up, too."""
    STAGES: gl.constexpr = ring.tiles.shape[0]
    ROWS: gl.constexpr = ring.tiles.shape[1]
    HALVES: gl.constexpr = 2 if IS_GATED else 1
    total = gl.zeros([_BLOCK_OUT, ROWS], gl.float32, LAYOUT)
    up = total
    for i in range(num_steps):
        ring.wait_full(count + i)
        rows = ring.tile(count + i).permute((1, 0))
        place = (count + i) % STAGES * HALVES
        total = warpgroup_mma(weights.index(place), rows, total, is_async=True)
        if IS_GATED:
            up = warpgroup_mma(weights.index(place + 1), rows, up, is_async=True)
            total, up = warpgroup_mma_wait(2, deps=[total, up])
        else:
            total = warpgroup_mma_wait(1, deps=[total])
        # The product before this one has ended, so its memory may be written.
        if i > 0:
            ring.release(count + i - 1)
    if IS_GATED:
        total, up = warpgroup_mma_wait(0, deps=[total, up])
    else:
        total = warpgroup_mma_wait(0, deps=[total])
    ring.release(count + num_steps - 1)
    return total, up


@gluon.jit
def _activated(total, up, dtype: gl.constexpr, IS_GATED: gl.constexpr):
    """Rounds the outputs; if gated, before and after, as if the activation had its own kernel."""
    result = total.to(dtype)
    if IS_GATED:
        gate = result.to(gl.float32)
        result = (gate / (1.0 + gl.exp(-gate)) * up.to(dtype).to(gl.float32)).to(dtype)
    return result


@gluon.jit
def _inverse_rms(
    row_squares, num_rows, in_features, eps,
    NUM_SQUARES: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Returns the reciprocal of the root mean square of each row, [ROWS]."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [2, 16], [4, 1], [1, 0])
    parts = gl.arange(0, NUM_SQUARES, gl.SliceLayout(1, layout))[:, None]
    rows = gl.arange(0, ROWS, gl.SliceLayout(0, layout))[None, :]
    is_part = (parts < in_features // _BLOCK_OUT) & (rows < num_rows)
    values = gl.load(row_squares + parts * num_rows + rows, mask=is_part, other=0.0)
    mean = gl.convert_layout(gl.sum(values, axis=0), LAYOUT) / in_features
    return gl.rsqrt(mean + eps)


@gluon.jit
def _join_parts(
    total, up, tile, step, num_steps, num_tiles, partials, counters,
    ROWS: gl.constexpr, MAX_PARTS: gl.constexpr, IS_GATED: gl.constexpr,
):  # fmt: skip
    """Leaves this program's part of a tile.

    Returns whether it was the last one, and then the sums of all parts.
    """
    layout: gl.constexpr = total.type.layout
    outs = gl.arange(0, _BLOCK_OUT, gl.SliceLayout(1, layout))[:, None]
    places = partials + outs * ROWS + gl.arange(0, ROWS, gl.SliceLayout(0, layout))[None, :]
    num_all = num_tiles * num_steps
    tile_start = tile * num_steps
    program = gl.program_id(0)
    _store_part(total, up, places, program, step == tile_start, IS_GATED)
    first = ((tile_start + 1) * gl.num_programs(0) - 1) // num_all
    last = ((tile_start + num_steps) * gl.num_programs(0) - 1) // num_all
    _barrier()
    num_before = gl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
    is_last = num_before == last - first
    if is_last:
        gl.store(counters + tile, 0)
        own_total = total
        own_up = up
        for i in gl.static_range(MAX_PARTS):
            other = first + i
            other_start, _ = _share_of(other, num_all)
            part, part_of_up = _load_part(
                places, other, other_start <= tile_start, (other <= last) & (other != program),
                ROWS, IS_GATED,
            )  # fmt: skip
            part = gl.where(other == program, own_total, part)
            part_of_up = gl.where(other == program, own_up, part_of_up)
            total = part if i == 0 else total + part
            up = part_of_up if i == 0 else up + part_of_up
    return is_last, total, up


@gluon.jit
def _part_of(places, program, is_start, ROWS: gl.constexpr, IS_GATED: gl.constexpr):
    """Returns where a program leaves the start of a tile, or a later part of another."""
    SIZE: gl.constexpr = _BLOCK_OUT * ROWS * (2 if IS_GATED else 1)
    return places + (2 * program + is_start.to(gl.int32)) * SIZE


@gluon.jit
def _store_part(total, up, places, program, is_start, IS_GATED: gl.constexpr):
    ROWS: gl.constexpr = total.shape[1]
    mine = _part_of(places, program, is_start, ROWS, IS_GATED)
    gl.store(mine, total)
    if IS_GATED:
        gl.store(mine + _BLOCK_OUT * ROWS, up)


@gluon.jit
def _load_part(places, program, is_start, is_read, ROWS: gl.constexpr, IS_GATED: gl.constexpr):
    theirs = _part_of(places, program, is_start, ROWS, IS_GATED)
    # Not from this multiprocessor's own cache, which may hold what was there before.
    total = gl.load(theirs, mask=is_read, other=0.0, cache_modifier=".cg")
    up = total
    if IS_GATED:
        up = gl.load(theirs + _BLOCK_OUT * ROWS, mask=is_read, other=0.0, cache_modifier=".cg")
    return total, up


@gluon.jit
def _store(
    result, tile, residual, norm_weight, out, new_residual, squares, residual_stride,
    num_rows, num_outs, ROWS: gl.constexpr,
):  # fmt: skip
    """Stores a tile [outputs, rows]; before a norm, what the next product needs of it."""
    dtype: gl.constexpr = out.dtype.element_ty
    layout: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1])
    result = gl.convert_layout(result, layout)
    outs = tile * _BLOCK_OUT + gl.arange(0, _BLOCK_OUT, gl.SliceLayout(1, layout))
    rows = gl.arange(0, ROWS, gl.SliceLayout(0, layout))
    is_value = (outs < num_outs)[:, None] & (rows < num_rows)[None, :]
    wide_rows = rows.to(gl.int64)[None, :]
    places = wide_rows * num_outs + outs[:, None]
    if norm_weight is not None:
        added = gl.load(
            residual + wide_rows * residual_stride + outs[:, None], mask=is_value, other=0.0
        )
        result = (result.to(gl.float32) + added.to(gl.float32)).to(dtype)
        gl.store(new_residual + places, result, mask=is_value)
        wide = result.to(gl.float32)
        gl.store(
            squares + tile * num_rows + rows, gl.sum(wide * wide, axis=0), mask=rows < num_rows
        )
        scale = gl.load(norm_weight + outs).to(gl.float32)
        result = (wide * scale[:, None]).to(dtype)
    gl.store(out + places, result, mask=is_value)
