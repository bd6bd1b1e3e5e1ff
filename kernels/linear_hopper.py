"""Linear projections of up to 64 rows on Hopper, which are bound by the reading of the weights.

A producer warp fetches weights and rows with the bulk copy engine, as far ahead as shared memory
has room, and four warps multiply. The outputs are the rows of the matrix instruction, which has 64,
and the rows its columns. The producer does not wait for the kernel in front to fetch weights, so
memory is busy from one product to the next, and lets the next kernel start before it waits.

`product_division.py` says which outputs and inputs each program has. Several may share a tile of
outputs (`tile_shares.py`).

In bfloat16, a norm between two products needs no kernel of its own. The first product adds the
residual, multiplies by the norm's weight and sums the squares of its outputs. The second divides
what it has multiplied by the root mean square.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.dependent_launch import dependent_launch, wait_for_kernel_in_front
from kernels.gpu import is_hopper, num_multiprocessors
from kernels.product_copies import PIECE, copy_steps
from kernels.product_division import BLOCK_IN, BLOCK_M, MIN_ROWS, Division, divide, padded
from kernels.tile_ring import make_ring
from kernels.tile_shares import allocate_shares, join_shares, share_of

_MAX_ROWS = 64
"""With 128, cuBLAS is as fast (layers of 8B, of half of 32B) or faster (0.6B, 4B)."""
_BLOCK_M = gl.constexpr(BLOCK_M)
_BLOCK_IN = gl.constexpr(BLOCK_IN)
_SHARED_BYTES = 226 << 10
"""That a program can have, without barriers."""
_MAX_STAGES = 12
"""Steps in shared memory."""
_MAX_STAGES_OF_FEW_ROWS = 8
"""Of up to 8 rows. As many as fit would leave no room for a kernel that starts early behind."""
_MAX_NORM_SIZE = 8192
"""Of a chained product; its sums of squares pass through registers, one for each tile and row."""
_PRODUCER_REGISTERS = gl.constexpr(40)


def can_multiply(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Returns whether the kernel supports these arguments of `linear`."""
    return (
        x.is_cuda
        and is_hopper(x.device)
        and x.shape[0] <= _MAX_ROWS
        and x.dtype in (torch.float16, torch.bfloat16)
        and min(x.shape[1], weight.shape[0]) > 0
        and _can_copy(x)
        and _can_copy(weight)
    )


def can_chain(x: torch.Tensor, weight: torch.Tensor, next_weight: torch.Tensor) -> bool:
    """Returns whether the kernel supports these arguments of `linear_norm_linear`."""
    return (
        can_multiply(x, weight)
        and weight.shape[0] % BLOCK_M == 0
        and can_end_chain(weight.shape[0], next_weight)
    )


def can_end_chain(hidden: int, weight: torch.Tensor) -> bool:
    """Returns whether the kernel supports a product behind a norm of so many elements.

    Assumes a Hopper GPU, and at most 64 rows.
    """
    return (
        # What is multiplied before the division by the root mean square may overflow float16.
        weight.dtype == torch.bfloat16
        and hidden <= _MAX_NORM_SIZE
        and hidden % 8 == 0
        and weight.shape[0] > 0
        and _can_copy(weight)
    )


def _can_copy(tensor: torch.Tensor) -> bool:
    # The copy engine needs addresses at multiples of 16 bytes.
    is_aligned = tensor.stride(0) % 8 == 0 and tensor.data_ptr() % 16 == 0
    return is_aligned and tensor.stride(0) >= tensor.shape[1]


def multiply(
    x: torch.Tensor, weight: torch.Tensor, counters: torch.Tensor | None, *, is_gated: bool
) -> torch.Tensor:
    """Computes `linear`, or `gated_linear`, for arguments that `can_multiply` accepts.

    Args:
        x: [num_tokens, in_features]
        weight: [out_features, in_features], twice the rows if gated
        counters: of `make_counters`, or None, which costs a kernel where tiles are shared
        is_gated: whether to compute `gated_linear`

    Returns:
        [num_tokens, out_features]
    """
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
    """Computes `linear_norm_linear`, of the same arguments, if `can_chain` accepts them.

    Returns:
        the second projection, [num_tokens, out_features], and the new residual,
        [num_tokens, hidden]
    """
    num_rows, hidden = x.shape[0], weight.shape[0]
    scaled = torch.empty((num_rows, hidden), dtype=x.dtype, device=x.device)
    new_residual = torch.empty_like(scaled)
    num_tiles = _divide(x, hidden, is_gated=False).num_tiles
    square_sums = torch.empty((num_tiles, num_rows), dtype=torch.float32, device=x.device)
    _launch(
        x, weight, scaled, counters,
        residual=residual, norm_weight=norm_weight, new_residual=new_residual,
        square_sums_out=square_sums,
    )  # fmt: skip
    out = end_chain(scaled, square_sums, eps, next_weight, next_counters, is_gated=is_gated)
    return out, new_residual


def end_chain(
    scaled: torch.Tensor,
    square_sums: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    counters: torch.Tensor | None,
    *,
    is_gated: bool,
) -> torch.Tensor:
    """Divides rows by their root mean square, and projects them.

    Args:
        scaled: [num_tokens, hidden], already multiplied by the norm's weight
        square_sums: [num_tiles, num_tokens] float32, which add up to the sum of each row's squares
        eps: added to the mean square
        weight: [out_features, hidden], twice the rows if gated
        counters: as of `multiply`
        is_gated: whether to compute `gated_linear`

    Returns:
        [num_tokens, out_features]
    """
    num_outs = weight.shape[0] // 2 if is_gated else weight.shape[0]
    out = torch.empty((scaled.shape[0], num_outs), dtype=scaled.dtype, device=scaled.device)
    _launch(scaled, weight, out, counters, square_sums=square_sums, eps=eps, is_gated=is_gated)
    return out


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    counters: torch.Tensor | None,
    *,
    residual: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    new_residual: torch.Tensor | None = None,
    square_sums_out: torch.Tensor | None = None,
    square_sums: torch.Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
) -> None:
    """Computes one product.

    Args:
        x: [num_tokens, in_features]
        weight: [out_features, in_features], twice the rows if gated
        out: [num_tokens, out_features], written; with a norm_weight, the sum times that weight
        counters: as of `multiply`
        residual: [num_tokens, out_features], added to the product; None adds nothing
        norm_weight: [out_features], of the norm that follows; None if there is none
        new_residual: [num_tokens, out_features], the sum; written if there is a norm_weight
        square_sums_out: [num_tiles, num_tokens] float32, the sums of the squares of each tile of
            the sum; likewise
        square_sums: the same of the product in front: rows are divided by their root mean square
        eps: added to the mean square
        is_gated: whether to compute `gated_linear`
    """
    num_rows, in_features = x.shape
    num_outs = out.shape[1]
    if out.numel() == 0:
        return
    padded_rows = padded(num_rows)
    division = _divide(x, num_outs, is_gated=is_gated)
    partials, counters = allocate_shares(division, padded_rows, counters, x.device)
    num_square_tiles = 0 if square_sums is None else square_sums.shape[0]
    stage_rows = padded_rows * division.num_in_parts + BLOCK_M
    # Sums in float32 pass through shared memory before they are stored.
    ring_bytes = _SHARED_BYTES - 4 * BLOCK_M * padded_rows
    max_stages = _MAX_STAGES if padded_rows > MIN_ROWS else _MAX_STAGES_OF_FEW_ROWS
    _linear_hopper_kernel[(division.num_programs,)](
        _describe(x, padded_rows),
        _describe(weight, division.block_out),
        square_sums,
        residual,
        norm_weight,
        out,
        new_residual,
        square_sums_out,
        partials,
        counters,
        0 if residual is None else residual.stride(0),
        num_rows,
        in_features,
        num_outs,
        num_square_tiles,
        eps,
        ROWS=padded_rows,
        IN_PARTS=division.num_in_parts,
        STAGES=min(max_stages, ring_bytes // (2 * BLOCK_IN * stage_rows)),
        SQUARE_TILES=triton.next_power_of_2(num_square_tiles) if num_square_tiles else 0,
        MAX_SHARES=division.max_shares,
        IS_GATED=is_gated,
        num_warps=4,
        **dependent_launch(x),
    )


def _divide(x: torch.Tensor, num_outs: int, *, is_gated: bool) -> Division:
    num_rows, in_features = x.shape
    processors = num_multiprocessors(x.device)
    return divide(num_outs, in_features, padded(num_rows), processors, is_gated=is_gated)


def _describe(tensor: torch.Tensor, num_rows: int) -> TensorDescriptor:
    box = [num_rows, PIECE.value]
    dtype = gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for(box, dtype)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), box, layout)


@gluon.jit(do_not_specialize=["num_rows", "in_features", "num_square_tiles"])
def _linear_hopper_kernel(
    x,
    weight,
    square_sums,
    residual,
    norm_weight,
    out,
    new_residual,
    square_sums_out,
    partials,
    counters,
    residual_stride,
    num_rows,
    in_features,
    num_outs,
    num_square_tiles,
    eps,
    ROWS: gl.constexpr,
    IN_PARTS: gl.constexpr,
    STAGES: gl.constexpr,
    SQUARE_TILES: gl.constexpr,
    MAX_SHARES: gl.constexpr,
    IS_GATED: gl.constexpr,
    IS_DEPENDENT: gl.constexpr,
):
    BLOCK_OUT: gl.constexpr = weight.block_type.shape[0]
    dtype: gl.constexpr = x.dtype
    weight_tile: gl.constexpr = [_BLOCK_M, _BLOCK_IN]
    weights = gl.allocate_shared_memory(
        dtype,
        [STAGES, _BLOCK_M, _BLOCK_IN],
        gl.NVMMASharedLayout.get_default_for(weight_tile, dtype),
    )
    row_tile: gl.constexpr = [IN_PARTS * ROWS, _BLOCK_IN]
    rows = gl.allocate_shared_memory(
        dtype,
        [STAGES, IN_PARTS * ROWS, _BLOCK_IN],
        gl.NVMMASharedLayout.get_default_for(row_tile, dtype),
    )
    ring = make_ring(rows, 1)
    fence_async_shared()
    num_tiles = gl.cdiv(num_outs, BLOCK_OUT)
    num_steps = gl.cdiv(in_features, IN_PARTS * _BLOCK_IN)
    if MAX_SHARES == 1:
        first, last = share_of(gl.program_id(0), num_tiles)
        first, last = first * num_steps, last * num_steps
    else:
        first, last = share_of(gl.program_id(0), num_tiles * num_steps)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    weights, ring, square_sums, residual, norm_weight, out, new_residual,
                    square_sums_out, partials, counters, residual_stride, num_rows, in_features,
                    num_outs, num_square_tiles, num_tiles, num_steps, first, last, eps,
                    ROWS, IN_PARTS, SQUARE_TILES, MAX_SHARES, IS_GATED, IS_DEPENDENT,
                ),
            ),
            (
                copy_steps,
                (
                    x, weight, weights, ring, num_steps, num_outs, first, last,
                    IN_PARTS, IS_GATED, IS_DEPENDENT,
                ),
            ),
        ],
        [1],
        [_PRODUCER_REGISTERS],
    )  # fmt: skip


@gluon.jit
def _consume(
    weights, ring, square_sums, residual, norm_weight, out, new_residual,
    square_sums_out, partials, counters, residual_stride, num_rows, in_features, num_outs,
    num_square_tiles, num_tiles, num_steps, first, last, eps,
    ROWS: gl.constexpr, IN_PARTS: gl.constexpr, SQUARE_TILES: gl.constexpr,
    MAX_SHARES: gl.constexpr, IS_GATED: gl.constexpr, IS_DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Multiplies steps `first` to `last`, and stores the tiles that are whole then."""
    NUM_SUMS: gl.constexpr = _BLOCK_M // IN_PARTS
    dtype: gl.constexpr = out.dtype.element_ty
    layout: gl.constexpr = _make_layout(NUM_SUMS)
    # The producer waits for what it copies; here, that is for what these warps read themselves.
    if IS_DEPENDENT:
        wait_for_kernel_in_front()
    if SQUARE_TILES > 0:
        inverse_rms = _inverse_rms(
            square_sums, num_square_tiles, num_rows, in_features, eps, SQUARE_TILES, ROWS,
            gl.SliceLayout(0, layout),
        )  # fmt: skip
    count = 0
    step = first
    while step < last:
        tile = step // num_steps
        end = gl.minimum(last, (tile + 1) * num_steps)
        if norm_weight is not None:
            # Read now: what follows the products waits for each other.
            added, scale = _load_norm(
                residual, norm_weight, tile, residual_stride, num_rows, NUM_SUMS, ROWS, layout
            )
        total = _multiply(weights, ring, count, end - step)
        count += end - step
        total = _add_in_parts(total, ROWS, IN_PARTS, layout)
        is_whole = end - step == num_steps
        if MAX_SHARES > 1 and end - step < num_steps:
            is_whole, total = join_shares(
                total, tile, step, num_steps, num_tiles, partials, counters, MAX_SHARES
            )
        if is_whole:
            if SQUARE_TILES > 0:
                total = total * inverse_rms[None, :]
            result = _activated(total, dtype) if IS_GATED else total.to(dtype)
            if norm_weight is not None:
                result = _add_before_norm(
                    result, added, scale, tile, new_residual, square_sums_out, num_rows, num_outs
                )
            _store(result, tile, out, num_rows, num_outs)
        step = end


@gluon.constexpr_function
def _make_layout(num_outs):
    """Returns a layout of [num_outs, rows] with 16 bytes of outputs per thread."""
    return gl.BlockedLayout([8, 1], [num_outs // 8, 256 // num_outs], [1, 4], [0, 1])


@gluon.jit
def _multiply(weights, ring, count, num_steps):
    """Returns the products of the next steps, [_BLOCK_M, IN_PARTS * ROWS].

    They are those of each part of the inputs of the weights with each of the rows, of which only
    the same parts belong together.
    """
    STAGES: gl.constexpr = ring.tiles.shape[0]
    COLUMNS: gl.constexpr = ring.tiles.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    total = gl.zeros([_BLOCK_M, COLUMNS], gl.float32, layout)
    for i in range(num_steps):
        ring.wait_full(count + i)
        rows = ring.tile(count + i).permute((1, 0))
        total = warpgroup_mma(weights.index((count + i) % STAGES), rows, total, is_async=True)
        total = warpgroup_mma_wait(1, deps=[total])
        # The product before this one has ended, so its memory may be written.
        if i > 0:
            ring.release(count + i - 1)
    total = warpgroup_mma_wait(0, deps=[total])
    ring.release(count + num_steps - 1)
    return total


@gluon.jit
def _add_in_parts(products, ROWS: gl.constexpr, IN_PARTS: gl.constexpr, LAYOUT: gl.constexpr):
    """Returns the sums over the parts of the inputs, [_BLOCK_M / IN_PARTS, ROWS]."""
    if IN_PARTS > 1:
        NUM_SUMS: gl.constexpr = _BLOCK_M // IN_PARTS
        layout: gl.constexpr = products.type.layout
        sums = gl.arange(0, _BLOCK_M, gl.SliceLayout(1, layout))
        rows = gl.arange(0, IN_PARTS * ROWS, gl.SliceLayout(0, layout))
        is_same = (sums // NUM_SUMS)[:, None] == (rows // ROWS)[None, :]
        products = gl.where(is_same, products, 0.0)
        products = products.reshape([IN_PARTS, NUM_SUMS, IN_PARTS, ROWS])
        products = gl.sum(gl.sum(products, axis=2), axis=0)
    return gl.convert_layout(products, LAYOUT)


@gluon.jit
def _activated(total, dtype: gl.constexpr):
    """Returns gate * sigmoid(gate) * up of gates and, below them, ups: half as many.

    Rounds before and after, as if the activation had its own kernel.
    """
    BLOCK_OUT: gl.constexpr = _BLOCK_M // 2
    shape: gl.constexpr = [2, BLOCK_OUT, total.shape[1]]
    layout: gl.constexpr = _make_layout(BLOCK_OUT)
    is_gate = gl.arange(0, _BLOCK_M, gl.SliceLayout(1, total.type.layout))[:, None] < BLOCK_OUT
    gate = gl.sum(gl.where(is_gate, total, 0.0).reshape(shape), axis=0)
    up = gl.sum(gl.where(is_gate, 0.0, total).reshape(shape), axis=0)
    gate = gl.convert_layout(gate, layout).to(dtype).to(gl.float32)
    up = gl.convert_layout(up, layout).to(dtype).to(gl.float32)
    return (gate / (1.0 + gl.exp(-gate)) * up).to(dtype)


@gluon.jit
def _inverse_rms(
    square_sums, num_square_tiles, num_rows, in_features, eps,
    SQUARE_TILES: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Returns the reciprocal of the root mean square of each row, [ROWS]."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [2, 16], [4, 1], [1, 0])
    tiles = gl.arange(0, SQUARE_TILES, gl.SliceLayout(1, layout))[:, None]
    rows = gl.arange(0, ROWS, gl.SliceLayout(0, layout))[None, :]
    is_value = (tiles < num_square_tiles) & (rows < num_rows)
    values = gl.load(square_sums + tiles * num_rows + rows, mask=is_value, other=0.0)
    mean = gl.convert_layout(gl.sum(values, axis=0), LAYOUT) / in_features
    return gl.rsqrt(mean + eps)


@gluon.jit
def _load_norm(
    residual, norm_weight, tile, residual_stride, num_rows,
    BLOCK_OUT: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Returns what a tile is added to, [BLOCK_OUT, ROWS], and the norm's weights of it."""
    # `can_chain` takes whole tiles only.
    outs = tile * BLOCK_OUT + gl.arange(0, BLOCK_OUT, gl.SliceLayout(1, LAYOUT))
    rows = gl.arange(0, ROWS, gl.SliceLayout(0, LAYOUT))[None, :]
    places = residual + rows.to(gl.int64) * residual_stride + outs[:, None]
    return gl.load(places, mask=rows < num_rows, other=0.0), gl.load(norm_weight + outs)


@gluon.jit
def _add_before_norm(result, added, scale, tile, new_residual, square_sums_out, num_rows, num_outs):
    """Adds to a tile, stores what the next product needs of the sum, and returns its rows."""
    dtype: gl.constexpr = result.dtype
    layout: gl.constexpr = result.type.layout
    result = (result.to(gl.float32) + added.to(gl.float32)).to(dtype)
    _store(result, tile, new_residual, num_rows, num_outs)
    wide = result.to(gl.float32)
    rows = gl.arange(0, result.shape[1], gl.SliceLayout(0, layout))
    sum_places = square_sums_out + tile * num_rows + rows
    gl.store(sum_places, gl.sum(wide * wide, axis=0), mask=rows < num_rows)
    return (wide * scale.to(gl.float32)[:, None]).to(dtype)


@gluon.jit
def _store(result, tile, out, num_rows, num_outs):
    """Stores a tile [outputs, rows]."""
    layout: gl.constexpr = result.type.layout
    BLOCK_OUT: gl.constexpr = result.shape[0]
    outs = tile * BLOCK_OUT + gl.arange(0, BLOCK_OUT, gl.SliceLayout(1, layout))
    rows = gl.arange(0, result.shape[1], gl.SliceLayout(0, layout))[None, :]
    places = out + rows.to(gl.int64) * num_outs + outs[:, None]
    gl.store(places, result, mask=(outs < num_outs)[:, None] & (rows < num_rows))
