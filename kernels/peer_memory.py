"""Memory that all ranks of one host read and write directly, for the kernels of `all_reduce`.

Each rank owns one buffer, into which its peers write over NVLink. The buffer is divided into areas
(`_area_sizes`), all of a fixed size, so that an address is that of the area plus an index. torch's
symmetric memory allocates the buffers and makes them known to the other ranks; multicast is not
used. What the areas mean, and who may write them when, is described in `tagged_words` and
`flagged_rows`. Any number of ranks has all areas, although each has a way that it never takes.
"""

import functools
import math
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory

from kernels.gpu import num_multiprocessors

# Bytes that a rank sends as tagged words: of two ranks 32 rows of 4,096 bfloat16. Measured on two
# and on four H200.
_MAX_TAGGED_BYTES_OF_TWO, _MAX_TAGGED_BYTES_OF_MORE = 1 << 19, 1 << 20
# More rows of two ranks go by the copy engines, beside products. Between four, NCCL is faster from
# there on. Measured on two and on four H200.
_MAX_ROWS_OF_TWO, _MAX_ROWS_OF_MORE = 1024, 256
# With more ranks, each would send more than in NCCL's ring: four were no faster.
_MAX_RANKS_THAT_COPY = 2
_ALIGNMENT = 256
"""Bytes; where an area begins."""
_FLAG_BYTES = 4
NUM_LANES = 2
"""Parts of a step's rows that are exchanged on their own."""
NUM_BUFFERS = 2
"""Buffers of a lane, used in turn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeerMemory:
    """One rank's view of the buffers of all ranks.

    Attributes:
        rank: this rank, from 0 on
        hidden: elements of a row
        dtype: of an element
        max_rows: the largest number of rows of one collective
        max_tagged_rows: the largest number of them that go as tagged words
        max_programs: the most programs of one kernel; all of them run at once. The same on all
            ranks, as it decides which rows have a flag together
        areas: [areas, world_size] int64, the addresses of each rank's areas: words, parts, totals,
            flags of parts, flags of totals
        counts: [2, max_rows] int64, how many collectives of tagged words and how many others have
            reduced each row; only this rank's kernels read and write them
        nanoseconds: [] int64, how long this rank's collectives have taken on its GPU, with the wait
            for peers; only this rank's kernels write it
        buffer: this rank's own buffer, or its handle, kept alive
    """

    rank: int
    hidden: int
    dtype: torch.dtype
    max_rows: int
    max_tagged_rows: int
    max_programs: int
    areas: torch.Tensor
    counts: torch.Tensor
    nanoseconds: torch.Tensor
    buffer: object

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.areas.shape[1]

    def collective_seconds(self) -> float:
        """Returns how long this rank's collectives have taken.

        Waits for a copy beside the kernels that run, so call it from a thread that may wait.
        """
        with torch.cuda.stream(_copy_stream(self.nanoseconds.device)):
            return self.nanoseconds.item() / 1e9


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CopyMemory:
    """One rank's view of where all ranks receive rows that others copy to them.

    Each rank receives into lanes, buffers of a lane, and places, one for each of its peers: that of
    rank s in the memory of rank r is (s - r - 1) mod world_size.

    Attributes:
        rank: this rank, from 0 on
        min_rows: the smallest number of rows of one collective
        max_rows: the largest number
        num_processors: multiprocessors of the GPU
        rows: of each rank, [lanes, buffers, world_size - 1, max_rows, hidden]
        flags: of each rank, [lanes, buffers, world_size - 1] int32, 1 where rows have come
        one: [] int32, what a flag is set to
        buffer: this rank's own buffer, or its handle, kept alive
    """

    rank: int
    min_rows: int
    max_rows: int
    num_processors: int
    rows: list[torch.Tensor]
    flags: list[torch.Tensor]
    one: torch.Tensor
    buffer: object

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return len(self.rows)

    def takes(self, num_rows: int) -> bool:
        """Returns whether the rows go through this memory."""
        return self.min_rows <= num_rows <= self.max_rows

    def destinations(self, lane: int, buffer: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields where each peer receives this rank's rows, and the flag that follows them."""
        for peer in range(self.world_size):
            if peer != self.rank:
                place = lane, buffer, (self.rank - peer - 1) % self.world_size
                yield self.rows[peer][place], self.flags[peer][place]

    def received(self, lane: int, buffer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what this rank receives, [world_size - 1, max_rows, hidden], and the flags."""
        return self.rows[self.rank][lane, buffer], self.flags[self.rank][lane, buffer]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peers:
    """The ranks that reduce together.

    Attributes:
        group: their process group; None is torch's default group
        memory: what all ranks access directly; None where they cannot
        copies: where they copy many rows to; None where they do not
        obstacle: why there is no such memory, in words; empty if there is
    """

    group: dist.ProcessGroup | None
    memory: PeerMemory | None = None
    copies: CopyMemory | None = None
    obstacle: str = ""

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return dist.get_world_size(self.group) if self.memory is None else self.memory.world_size


def connect_peers(
    group: dist.ProcessGroup | None,
    device: torch.device,
    hidden: int,
    dtype: torch.dtype,
    *,
    max_rows: int | None = None,
    max_copied_rows: int = 0,
) -> Peers:
    """Allocates this rank's buffers and learns where those of the others are.

    All ranks of the group call it at the same time, with the same sizes, and all get memory or
    none does. On a CPU none does.

    Args:
        group: the ranks; None is torch's default group
        device: this rank's; the current one, if it is a GPU
        hidden: elements of a row
        dtype: of an element
        max_rows: the largest number of rows that the kernels of `all_reduce` send; None for as many
            as no other way sends faster
        max_copied_rows: the largest number of rows that copy engines send

    Raises:
        RuntimeError: the ranks have direct access, but could not share the memory
        torch.OutOfMemoryError: no room for `buffer_bytes` and `copy_bytes`
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    obstacle = _obstacle(group, device)
    if obstacle:
        return Peers(group=group, obstacle=obstacle)
    world_size, rank = dist.get_world_size(group), dist.get_rank(group)
    if max_rows is None:
        max_rows = _MAX_ROWS_OF_TWO if world_size == 2 else _MAX_ROWS_OF_MORE
    num_processors = num_multiprocessors(device)
    of_all = [0] * world_size
    dist.all_gather_object(of_all, num_processors, group)
    buffers, owner = _share(group, device, buffer_bytes(world_size, hidden, dtype, max_rows))
    memory = peer_memory(rank, buffers, hidden, dtype, max_rows, min(of_all), owner)
    copies = None
    if max_rows < max_copied_rows and world_size <= _MAX_RANKS_THAT_COPY:
        buffers, owner = _share(
            group, device, copy_bytes(world_size, hidden, dtype, max_copied_rows)
        )
        bounds = max_rows + 1, max_copied_rows
        copies = copy_memory(rank, buffers, hidden, dtype, bounds, num_processors, owner)
    return Peers(group=group, memory=memory, copies=copies)


def _share(
    group: dist.ProcessGroup | None, device: torch.device, num_bytes: int
) -> tuple[list[torch.Tensor], object]:
    """Returns a buffer of zeros of each rank, as bytes, and what keeps this rank's alive."""
    rank = dist.get_rank(group)
    own = symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=device)
    named = dist.group.WORLD if group is None else group
    handle = symmetric_memory.rendezvous(own, cast("dist.ProcessGroup", named))
    own.zero_()
    torch.cuda.synchronize(device)
    # No rank may write into a buffer that its owner has still to clear.
    dist.barrier(group)
    torch.cuda.synchronize(device)
    # The buffer may begin inside its allocation, at the same place on every rank.
    offset = own.data_ptr() - handle.get_buffer(rank, (num_bytes,), torch.uint8).data_ptr()
    buffers = [
        handle.get_buffer(peer, (num_bytes,), torch.uint8, offset)
        for peer in range(handle.world_size)
    ]
    return buffers, (own, handle)


def peer_memory(
    rank: int,
    buffers: Sequence[torch.Tensor],
    hidden: int,
    dtype: torch.dtype,
    max_rows: int,
    max_programs: int,
    owner: object = None,
) -> PeerMemory:
    """Describes buffers of `buffer_bytes` zeros, one of each rank."""
    world_size, device = len(buffers), buffers[rank].device
    areas, offset = [], 0
    for size in _area_sizes(world_size, hidden, dtype, max_rows):
        areas.append([buffer.data_ptr() + offset for buffer in buffers])
        offset += size
    return PeerMemory(
        rank=rank,
        hidden=hidden,
        dtype=dtype,
        max_rows=max_rows,
        max_tagged_rows=_max_tagged_rows(world_size, hidden, dtype, max_rows),
        max_programs=max_programs,
        areas=torch.tensor(areas, dtype=torch.int64).to(device),
        counts=torch.zeros(2, max_rows, dtype=torch.int64).to(device),
        nanoseconds=torch.zeros((), dtype=torch.int64).to(device),
        buffer=(buffers, owner),
    )


def copy_memory(
    rank: int,
    buffers: Sequence[torch.Tensor],
    hidden: int,
    dtype: torch.dtype,
    bounds: tuple[int, int],
    num_processors: int,
    owner: object = None,
) -> CopyMemory:
    """Describes buffers of `copy_bytes` zeros, one of each rank.

    Args:
        rank: this rank
        buffers: of bytes, one of each rank
        hidden: elements of a row
        dtype: of an element
        bounds: the smallest and the largest number of rows
        num_processors: multiprocessors of the GPU
        owner: what keeps this rank's buffer alive
    """
    min_rows, max_rows = bounds
    shape = _copy_shape(len(buffers))
    num_bytes = math.prod(shape) * max_rows * hidden * dtype.itemsize
    return CopyMemory(
        rank=rank,
        min_rows=min_rows,
        max_rows=max_rows,
        num_processors=num_processors,
        rows=[buffer[:num_bytes].view(dtype).view(*shape, max_rows, hidden) for buffer in buffers],
        flags=[
            buffer[-_FLAG_BYTES * math.prod(shape) :].view(torch.int32).view(shape)
            for buffer in buffers
        ],
        one=torch.ones((), dtype=torch.int32, device=buffers[rank].device),
        buffer=(buffers, owner),
    )


def copy_bytes(world_size: int, hidden: int, dtype: torch.dtype, max_rows: int) -> int:
    """Returns the bytes of one rank's buffer: 134 MB for 2 ranks, 4,096 rows of 4,096 bfloat16."""
    places = math.prod(_copy_shape(world_size))
    num_bytes = places * (max_rows * hidden * dtype.itemsize + _FLAG_BYTES)
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _copy_shape(world_size: int) -> tuple[int, int, int]:
    return NUM_LANES, NUM_BUFFERS, world_size - 1


def buffer_bytes(world_size: int, hidden: int, dtype: torch.dtype, max_rows: int) -> int:
    """Returns the bytes of one rank's buffer: 27 MB for 2 ranks, 1,024 rows of 4,096 bfloat16."""
    return sum(_area_sizes(world_size, hidden, dtype, max_rows))


def _max_tagged_rows(world_size: int, hidden: int, dtype: torch.dtype, max_rows: int) -> int:
    sent_bytes = 2 * hidden * dtype.itemsize * max(world_size - 1, 1)
    max_bytes = _MAX_TAGGED_BYTES_OF_TWO if world_size <= 2 else _MAX_TAGGED_BYTES_OF_MORE
    return min(max_rows, max_bytes // sent_bytes)


def _area_sizes(world_size: int, hidden: int, dtype: torch.dtype, max_rows: int) -> list[int]:
    row = hidden * dtype.itemsize
    tagged_rows = _max_tagged_rows(world_size, hidden, dtype, max_rows)
    # Words and parts have two buffers; words are twice as wide as an element.
    num_parts = 2 * max_rows * (world_size - 1)
    sizes = [
        2 * tagged_rows * world_size * 2 * row,
        num_parts * row,
        max_rows * row,  # totals
        num_parts * _FLAG_BYTES,
        max_rows * _FLAG_BYTES,
    ]
    return [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]


def _obstacle(group: dist.ProcessGroup | None, device: torch.device) -> str:
    """Returns why the ranks cannot access each other's memory, the same on all; empty if they can.

    A rank that sees only its own GPU cannot tell; the ranks then count as connected.
    """
    if device.type != "cuda":
        return f"the ranks compute on a {device.type}"
    host, index = socket.gethostname(), device.index
    places: list[tuple[str, int]] = [("", -1)] * dist.get_world_size(group)
    dist.all_gather_object(places, (host, index), group)
    own = ""
    for other_host, other in places:
        if other_host != host:
            own = f"the ranks are on different hosts, {host} and {other_host}"
        elif not _has_access(index, other):
            own = f"GPU {index} has no direct access to GPU {other}"
    found = [""] * len(places)
    dist.all_gather_object(found, own, group)
    return next((obstacle for obstacle in found if obstacle), "")


def _has_access(index: int, other: int) -> bool:
    if index == other or other >= torch.cuda.device_count():
        return True
    return torch.cuda.can_device_access_peer(index, other)
