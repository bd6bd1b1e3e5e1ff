"""The ranks that share a model, as one of them sees the group."""

import logging
import time

import torch
import torch.distributed as dist

from engine_service.layers.norm import RMSNorm
from engine_service.layers.weight_slot import Shard
from kernels.all_reduce import all_reduce
from kernels.copied_all_reduce import (
    PartialSum,
    begin_all_reduce,
    end_all_reduce_add_rms_norm,
)
from kernels.peer_memory import Peers, connect_peers

logger = logging.getLogger(__name__)

_VOCAB_MULTIPLE = 4
"""Parts of the vocabulary begin at multiples of it, as groups of random numbers do."""

# With fewer, the kernels of the products would not fill a GPU, and launches take longer than they.
_LANE_TOKENS = 1024
_LANE_MULTIPLE = 128
"""Tokens of the first lane; products compute so many together."""


class Ranks:
    """One rank of a group. With a single rank, nothing is exchanged and nothing is copied.

    Sums are equal to the last bit on all ranks. All ranks must make the same calls in the same
    order, with tensors of equal shapes. A call raises RuntimeError if another rank has ended.

    Attributes:
        rank: This rank, from 0.
        size: Number of ranks.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """Uses torch's default process group, which the caller has set up if `size` is over 1."""
        self.rank = rank
        self.size = size
        self._peers = Peers(group=None)
        self._is_on_host = True
        self._host_seconds = 0.0

    @property
    def collective_seconds(self) -> float | None:
        """Time that the collectives of steps have taken, with the wait for other ranks.

        On a GPU, of those in peer memory, whose kernels measure it; None without such memory. It
        may wait for the device.
        """
        if self._is_on_host:
            return self._host_seconds
        memory = self._peers.memory
        return None if memory is None else memory.collective_seconds()

    def connect(
        self, device: torch.device, hidden_size: int, dtype: torch.dtype, max_num_tokens: int
    ) -> None:
        """Lets GPUs write into each other's memory where they can; all ranks call it together."""
        self._is_on_host = device.type == "cpu"
        if self.size > 1:
            max_copied_rows = min(
                max_num_tokens, max(_lane_sizes(max_num_tokens)[0], 2 * _LANE_TOKENS)
            )
            self._peers = connect_peers(
                None, device, hidden_size, dtype, max_copied_rows=max_copied_rows
            )
            if device.type == "cuda" and self.rank == 0 and self._peers.obstacle:
                logger.warning("peer memory unusable detail=%s", self._peers.obstacle)

    def shard(self, dim: int, full_size: int) -> Shard | None:
        """Returns this rank's part of a dimension that is divided evenly; None if it is whole."""
        if self.size == 1:
            return None
        return Shard(dim=dim, begin=self.rank * (full_size // self.size), full_size=full_size)

    def vocab_range(self, vocab_size: int) -> range:
        """Returns the token IDs of this rank's part of the vocabulary.

        The last part may be smaller; it is empty only for a vocabulary of a few tokens.
        """
        part = -(-vocab_size // self.size)
        part = -(-part // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
        begin = min(self.rank * part, vocab_size)
        return range(begin, min(begin + part, vocab_size)) if self.size > 1 else range(vocab_size)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all ranks' [num_tokens, hidden_size]; may overwrite x."""
        if self.size == 1:
            return x
        begun_at = time.perf_counter()
        total = all_reduce(x, self._peers)
        self._host_seconds += time.perf_counter() - begun_at
        return total

    def lane_sizes(self, num_tokens: int) -> list[int]:
        """Divides a step's tokens so that sums of some can run beside the work on others."""
        return [num_tokens] if self._peers.copies is None else _lane_sizes(num_tokens)

    def begin_sum(self, x: torch.Tensor, lane: int, index: int) -> PartialSum:
        """Begins to add up all ranks' x; other work may follow until `end_sum`.

        Args:
            x: [num_tokens, hidden_size], this rank's part; not to be written any more.
            lane: Which of the step's tokens they are, by `lane_sizes`.
            index: The number of the lane's sum within the step, from 0 on.
        """
        return begin_all_reduce(x, self._peers, lane, index)

    def end_sum(
        self, part: PartialSum, norm: RMSNorm, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the sum of all ranks' parts to the residual stream and normalises the result.

        Args:
            part: This rank's part.
            norm: The norm to apply.
            residual: [num_tokens, hidden_size].

        Returns:
            The normalised rows and the new residual, both [num_tokens, hidden_size].
        """
        begun_at = time.perf_counter()
        both = end_all_reduce_add_rms_norm(part, residual, norm.weight, norm.eps, self._peers)
        self._host_seconds += time.perf_counter() - begun_at
        return both

    def sum_on_cpu(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all ranks' CPU tensors; may overwrite x."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def maximum(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the elementwise maximum over all ranks; may overwrite x."""
        if self.size > 1:
            begun_at = time.perf_counter()
            dist.all_reduce(x, dist.ReduceOp.MAX)
            self._host_seconds += time.perf_counter() - begun_at
        return x

    def gather_vocab(self, logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Returns the logits of all ranks' parts of the vocabulary, [num_rows, vocab_size].

        Args:
            logits: [num_rows, tokens of this rank's `vocab_range`].
            vocab_size: Tokens of all ranks.
        """
        if self.size == 1:
            return logits
        begun_at = time.perf_counter()
        # All parts must be equally large.
        largest = -(-vocab_size // self.size)
        largest = -(-largest // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
        num_rows, width = logits.shape
        sent = torch.zeros(num_rows, largest, dtype=logits.dtype, device=logits.device)
        sent[:, :width] = logits
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent)
        self._host_seconds += time.perf_counter() - begun_at
        return torch.cat(parts, dim=1)[:, :vocab_size].contiguous()

    def minimum(self, value: int) -> int:
        """Returns the smallest of the ranks' numbers."""
        if self.size == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MIN)
        return int(values)

    def from_first(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Returns the numbers of the first rank, so that all decide alike."""
        if self.size == 1:
            return values
        sent = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(sent, 0)
        return tuple(sent.tolist())


def _lane_sizes(num_tokens: int) -> list[int]:
    """Returns the sizes of two lanes, or of one if they would be small."""
    if num_tokens <= 2 * _LANE_TOKENS:
        return [num_tokens]
    half = -(-num_tokens // 2)
    first = -(-half // _LANE_MULTIPLE) * _LANE_MULTIPLE
    return [first, num_tokens - first]


ALONE = Ranks()
"""The only rank of a model that is not divided."""
