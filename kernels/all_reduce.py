"""The sum over ranks, alone and fused with the residual addition and RMSNorm that follow.

Ranks write into each other's memory. Few rows go as tagged words (`tagged_words.py`), more as they
are, with a flag (`flagged_rows.py`): between two ranks in one shot, and between more in two. Larger
messages take the copy engines (`copied_all_reduce.py`) or NCCL, and ranks without direct access
NCCL. All ranks add in float32 in the order of ranks, or take the sum from the one that did, so they
hold equal bits; NCCL's sums are also equal on all ranks, but rounded to the type before the
residual is added.

Captured graphs and eager launches may alternate as they like, as long as all ranks launch the same
collectives in the same order, on one stream.

Waiting needs that what is waited for runs. So a launch has at most one program for each
multiprocessor (`max_programs`), which all run at once, each for several rows, and lets the next
kernel start only when they do; programs write all that they can before they wait. A peer that has
died is waited for without end: who watches the ranks ends them.

On a GPU, each launch adds the time that it took to `nanoseconds`, from when its inputs were there.
"""

import enum

import torch
import torch.distributed as dist
import triton

from kernels import reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch
from kernels.flagged_rows import flagged_rows_kernel, two_shots_kernel
from kernels.peer_memory import PeerMemory, Peers
from kernels.rms_norm import add_rms_norm
from kernels.tagged_words import tagged_words_kernel

_MAX_ROWS_OF_PROGRAM = 2
"""Flagged rows side by side. More do not fit into registers."""


class Way(enum.Enum):
    """How ranks that write into each other's memory add their rows."""

    TAGGED_WORDS = "tagged words"
    FLAGGED_ROWS = "flagged rows"
    TWO_SHOTS = "two shots"


_KERNELS = {
    Way.TAGGED_WORDS: tagged_words_kernel,
    Way.FLAGGED_ROWS: flagged_rows_kernel,
    Way.TWO_SHOTS: two_shots_kernel,
}


def all_reduce(x: torch.Tensor, peers: Peers) -> torch.Tensor:
    """Adds x over all ranks.

    Args:
        x: [num_tokens, hidden], rows may be strided; undefined afterwards
        peers: the ranks, which all call this at the same time with the same shapes

    Returns:
        [num_tokens, hidden], of equal bits on all ranks

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, peers)
    if x.device.type == "cpu":
        return reference.all_reduce(_gather(x, peers))
    if peers.memory is not None and x.shape[0] <= peers.memory.max_rows:
        return _all_reduce_triton(x, peers.memory)
    return _all_reduce_nccl(x, peers)


def all_reduce_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, peers: Peers
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds x over all ranks and the residual once, and normalises the sum.

    Args:
        x: [num_tokens, hidden], rows may be strided; undefined afterwards
        residual: [num_tokens, hidden], the same on all ranks, rows may be strided
        weight: [hidden], of the same type, the same on all ranks
        eps: added to the mean square
        peers: the ranks, which all call this at the same time with the same shapes

    Returns:
        the normalised sum and the sum, which is the next residual, both [num_tokens, hidden], of
        equal bits on all ranks

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, peers)
    check_dtype("residual", residual, x.dtype)
    check_shape("residual", residual, *x.shape)
    check_contiguous_rows("residual", residual)
    check_dtype("weight", weight, x.dtype)
    check_shape("weight", weight, x.shape[1])
    check_contiguous_rows("weight", weight)
    if x.device.type == "cpu":
        return reference.all_reduce_add_rms_norm(_gather(x, peers), residual, weight, eps)
    if peers.memory is not None and x.shape[0] <= peers.memory.max_rows:
        return _all_reduce_add_rms_norm_triton(x, residual, weight, eps, peers.memory)
    return add_rms_norm(_all_reduce_nccl(x, peers), residual, weight, eps)


def _check(x: torch.Tensor, peers: Peers) -> None:
    check_dtype("x", x)
    check_shape("x", x, None, None if peers.memory is None else peers.memory.hidden)
    check_contiguous_rows("x", x)
    if peers.memory is not None:
        check_dtype("x", x, peers.memory.dtype)


def _gather(x: torch.Tensor, peers: Peers) -> list[torch.Tensor]:
    """Returns the x of all ranks, in their order."""
    # As bytes, since not every backend knows every type.
    sent = x.contiguous().view(torch.uint8)
    parts = [torch.empty_like(sent) for _ in range(peers.world_size)]
    dist.all_gather(parts, sent, peers.group)
    return [part.view(x.dtype) for part in parts]


def _all_reduce_nccl(x: torch.Tensor, peers: Peers) -> torch.Tensor:
    total = x.contiguous()
    dist.all_reduce(total, group=peers.group)
    return total


def _all_reduce_triton(x: torch.Tensor, memory: PeerMemory) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, None, 0.0, out, None, memory)
    return out


def _all_reduce_add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, memory: PeerMemory
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, eps, out, total, memory)
    return out, total


def _is_timed(x: torch.Tensor) -> bool:
    # The interpreter has no clock of a GPU.
    return x.device.type != "cpu"


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
    total: torch.Tensor | None,
    memory: PeerMemory,
    *,
    way: Way | None = None,
) -> None:
    """Launches the kernel of a way, by default of that which is the fastest for so many rows."""
    num_rows, hidden = x.shape
    if num_rows == 0:
        return
    if way is None:
        way = _fastest_way(num_rows, memory)
    is_tagged = way is Way.TAGGED_WORDS
    max_rows = memory.max_tagged_rows if is_tagged else memory.max_rows
    assert num_rows <= max_rows, "the rows fit into the way's memory"
    num_programs, sizes = num_rows, {}
    if way is Way.FLAGGED_ROWS:
        rows_of_program = min(_MAX_ROWS_OF_PROGRAM, triton.cdiv(num_rows, memory.max_programs))
        num_programs, sizes = triton.cdiv(num_rows, rows_of_program), {"ROWS": rows_of_program}
    columns = triton.next_power_of_2(hidden)
    _KERNELS[way][(min(num_programs, memory.max_programs),)](
        x,
        residual,
        weight,
        out,
        total,
        memory.areas,
        memory.counts[0 if is_tagged else 1],
        memory.nanoseconds,
        memory.rank,
        num_rows,
        max_rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        hidden,
        eps,
        WORLD_SIZE=memory.world_size,
        HAS_NORM=weight is not None,
        COLUMNS=columns,
        IS_TIMED=_is_timed(x),
        num_warps=min(max(columns // 512, 1), 16),
        **sizes,
        **dependent_launch(x),
    )


def possible_ways(num_rows: int, memory: PeerMemory) -> list[Way]:
    """Returns the ways for which the memory has room."""
    return [way for way in Way if way is not Way.TAGGED_WORDS or num_rows <= memory.max_tagged_rows]


def _fastest_way(num_rows: int, memory: PeerMemory) -> Way:
    if num_rows <= memory.max_tagged_rows:
        return Way.TAGGED_WORDS
    return Way.FLAGGED_ROWS if memory.world_size == 2 else Way.TWO_SHOTS
