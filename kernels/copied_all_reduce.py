"""The sum over ranks of many rows, exchanged by the GPUs' copy engines beside other kernels.

For prompts. Every rank copies its rows into its peers' memory, and adds all parts once they are
there, with the residual addition and RMSNorm that follow. Copies take no multiprocessor, so the
products of other rows run at full speed meanwhile; NCCL's kernels take some, and slowed products
down by as much as they hid (measured on two H200).

A step has up to two lanes of rows, and a lane's sums go to its two buffers in turn, beginning anew
in each step. A flag of 1 follows the rows, and the receiver clears it when it has added them.

* A rank may be one sum of a lane ahead of a peer: it ends sum j once it has the peer's rows of j.
  It sends rows j + 2, into the buffer of j, only after it has the peer's rows of j + 1, which the
  peer sent after it had added those of j and cleared their flags.
* The first sum of a step comes after the collective that looks up the tokens' embeddings, which no
  rank passes before all have ended the step before.
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.all_reduce import all_reduce_add_rms_norm
from kernels.peer_memory import NUM_BUFFERS, CopyMemory, Peers
from kernels.reduced_rows import residual_rows, store_rows

# Each keeps few rows in flight; eight on a multiprocessor use the memory's bandwidth.
_PROGRAMS_OF_PROCESSOR = 8
# Sums of 4,096 rows of 5,120 take 58 us with 4 warps, 63 with 16; of 4,096 columns 46 and 48.
_NUM_WARPS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartialSum:
    """Rows of which each rank has a part of the sum.

    Attributes:
        x: [num_tokens, hidden], this rank's part
        lane: the lane of the rows
        buffer: the buffer of the lane; None if the sum is yet to begin
        sent: when the peers have all of x; None if nothing is sent, or it is done
    """

    x: torch.Tensor
    lane: int = 0
    buffer: int | None = None
    sent: torch.cuda.Event | None = None


def begin_all_reduce(x: torch.Tensor, peers: Peers, lane: int, index: int) -> PartialSum:
    """Begins to add x over all ranks, if that can go on beside other work.

    Args:
        x: [num_tokens, hidden]; not to be written until the sum has ended
        peers: the ranks, which all make the same calls with the same shapes
        lane: which rows of a step it is, 0 or 1
        index: the number of the lane's sum within the step, from 0 on
    """
    memory = peers.copies
    if memory is None or not memory.takes(x.shape[0]):
        return PartialSum(x=x)
    buffer = index % NUM_BUFFERS
    if x.device.type == "cpu":
        _copy(x, memory, lane, buffer)
        return PartialSum(x=x, lane=lane, buffer=buffer)
    stream = _copy_stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):
        _copy(x, memory, lane, buffer)
        sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        sent.record(stream)
    return PartialSum(x=x, lane=lane, buffer=buffer, sent=sent)


def end_all_reduce_add_rms_norm(
    part: PartialSum, residual: torch.Tensor, weight: torch.Tensor, eps: float, peers: Peers
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends the sum; takes and returns the same as `all_reduce.all_reduce_add_rms_norm`."""
    if part.buffer is None:
        return all_reduce_add_rms_norm(part.x, residual, weight, eps, peers)
    memory = peers.copies
    assert memory is not None, "the sum has begun"
    if part.sent is not None:
        # Nor may another kernel wait while copies do: some copies are kernels themselves.
        torch.cuda.current_stream(part.x.device).wait_event(part.sent)
    return _add_copies(part, residual, weight, eps, memory)


def _copy(x: torch.Tensor, memory: CopyMemory, lane: int, buffer: int) -> None:
    for rows, flag in memory.destinations(lane, buffer):
        rows[: x.shape[0]].copy_(x)
        flag.copy_(memory.one)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _add_copies(
    part: PartialSum, residual: torch.Tensor, weight: torch.Tensor, eps: float, memory: CopyMemory
) -> tuple[torch.Tensor, torch.Tensor]:
    x = part.x
    num_rows, hidden = x.shape
    out, total = torch.empty_like(residual), torch.empty_like(residual)
    received, flags = memory.received(part.lane, part.buffer or 0)
    columns = triton.next_power_of_2(hidden)
    grid = (min(num_rows, _PROGRAMS_OF_PROCESSOR * memory.num_processors),)
    _add_copies_kernel[grid](
        x,
        residual,
        weight,
        out,
        total,
        received,
        flags,
        memory.rank,
        num_rows,
        memory.max_rows,
        x.stride(0),
        residual.stride(0),
        hidden,
        eps,
        WORLD_SIZE=memory.world_size,
        COLUMNS=columns,
        num_warps=_NUM_WARPS,
    )
    flags.zero_()
    return out, total


@triton.jit(do_not_specialize=["rank", "num_rows"])
def _add_copies_kernel(
    x,
    residual,
    weight,
    out,
    total,
    received,
    flags,
    rank,
    num_rows,
    max_rows,
    x_stride,
    residual_stride,
    hidden,
    eps,
    WORLD_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    dtype: tl.constexpr = out.dtype.element_ty
    columns = tl.arange(0, COLUMNS)
    is_inside = columns < hidden
    scale = tl.load(weight + columns, mask=is_inside, other=0.0)
    for peer in tl.static_range(WORLD_SIZE - 1):
        while tl.atomic_add(flags + peer, 0, sem="acquire", scope="sys") != 1:
            pass
    tl.debug_barrier()
    for row in range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0)):
        own = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
        added = residual_rows(residual, row * residual_stride + columns, is_inside, True)
        wide = tl.zeros([COLUMNS], tl.float32)
        for source in tl.static_range(WORLD_SIZE):
            place = (source - rank - 1 + WORLD_SIZE) % WORLD_SIZE
            copied = received + (place.to(tl.int64) * max_rows + row) * hidden + columns
            part = tl.load(copied, mask=is_inside & (source != rank), other=0.0)
            wide += tl.where(source == rank, own, part).to(tl.float32)
        rounded = (wide + added).to(dtype)
        here = row * hidden + columns
        store_rows(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, True)
