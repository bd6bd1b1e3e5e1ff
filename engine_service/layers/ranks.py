"""The ranks that share a model, as one of them sees the group."""

import logging

import torch
import torch.distributed as dist

from engine_service.layers.norm import RMSNorm
from engine_service.layers.weight_slot import Shard
from kernels.all_reduce import all_reduce, all_reduce_add_rms_norm
from kernels.peer_memory import Peers, connect_peers

logger = logging.getLogger(__name__)

_VOCAB_MULTIPLE = 4
"""Parts of the vocabulary begin at multiples of it, as groups of random numbers do."""


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

    def connect(self, device: torch.device, hidden_size: int, dtype: torch.dtype) -> None:
        """Lets GPUs write into each other's memory where they can; all ranks call it together."""
        if self.size > 1:
            self._peers = connect_peers(None, device, hidden_size, dtype)
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
        return x if self.size == 1 else all_reduce(x, self._peers)

    def all_reduce_add_norm(
        self, norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the sum of all ranks' x to the residual stream and normalises the result.

        Args:
            norm: The norm to apply.
            x: [num_tokens, hidden_size], this rank's part of a sum; may be overwritten.
            residual: [num_tokens, hidden_size].

        Returns:
            The normalised rows and the new residual, as x.
        """
        if self.size == 1:
            return norm(x, residual)
        return all_reduce_add_rms_norm(x, residual, norm.weight, norm.eps, self._peers)

    def sum_on_cpu(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum of all ranks' CPU tensors; may overwrite x."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def maximum(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the elementwise maximum over all ranks; may overwrite x."""
        if self.size > 1:
            dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def gather_vocab(self, logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Returns the logits of all ranks' parts of the vocabulary, [num_rows, vocab_size].

        Args:
            logits: [num_rows, tokens of this rank's `vocab_range`].
            vocab_size: Tokens of all ranks.
        """
        if self.size == 1:
            return logits
        # All parts must be equally large.
        largest = -(-vocab_size // self.size)
        largest = -(-largest // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
        num_rows, width = logits.shape
        sent = torch.zeros(num_rows, largest, dtype=logits.dtype, device=logits.device)
        sent[:, :width] = logits
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent)
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


ALONE = Ranks()
"""The only rank of a model that is not divided."""
