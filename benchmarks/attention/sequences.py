"""Random sequences in a paged cache, for what measures attention."""

from collections.abc import Sequence

import torch

from kernels.attention_parts import make_counters
from kernels.decode_splits import split_sequences
from kernels.paged_attention_decode import paged_attention_decode
from kernels.paged_attention_prefill import paged_attention_prefill

HEAD_DIM = 128
SCALE = HEAD_DIM**-0.5


class Sequences:
    """Random keys and values of some sequences, in blocks in random order.

    Attributes:
        seq_lens: [num_seqs] int32
        kv_cache: [2, num_blocks, num_kv_heads, block_size, HEAD_DIM]
        counters: of decode attention
        block_table: [num_seqs, most blocks of a sequence] int32
        splits: of decode attention, planned here once as an engine does for all layers
    """

    def __init__(
        self,
        seq_lens: Sequence[int],
        num_kv_heads: int,
        block_size: int,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.max_seq_len = max(seq_lens)
        self.seq_lens = torch.tensor(seq_lens, dtype=torch.int32, device=device)
        nums_blocks = [-(-seq_len // block_size) for seq_len in seq_lens]
        self.kv_cache = torch.randn(
            (2, sum(nums_blocks), num_kv_heads, block_size, HEAD_DIM), device=device, dtype=dtype
        )
        order = torch.randperm(sum(nums_blocks), device=device).int()
        self.block_table = torch.nn.utils.rnn.pad_sequence(
            order.split(nums_blocks), batch_first=True
        )
        starts = [0, *self.seq_lens.cumsum(0).tolist()]
        self._starts = torch.tensor(starts, dtype=torch.int32, device=device)
        self.counters = make_counters(torch.device(device))
        self.splits = split_sequences(self.seq_lens, self.max_seq_len, num_kv_heads)

    def contiguous(self) -> list[torch.Tensor]:
        """Returns keys and values of sequences of one length.

        Both are [num_seqs, num_kv_heads, seq_len, HEAD_DIM].
        """
        table = self.block_table.long()
        return [
            half[table].transpose(1, 2).flatten(2, 3)[:, :, : self.max_seq_len].contiguous()
            for half in self.kv_cache
        ]

    def prefill(self, queries: torch.Tensor) -> torch.Tensor:
        """Attends from all tokens, [sum of seq_lens, num_heads, HEAD_DIM]."""
        return paged_attention_prefill(
            queries,
            self.kv_cache,
            self.block_table,
            self._starts,
            self.seq_lens,
            self.max_seq_len,
            SCALE,
        )

    def decode(self, queries: torch.Tensor) -> torch.Tensor:
        """Attends from the last tokens, [num_seqs, num_heads, HEAD_DIM]."""
        return paged_attention_decode(
            queries,
            self.kv_cache,
            self.block_table,
            self.seq_lens,
            self.max_seq_len,
            SCALE,
            counters=self.counters,
            splits=self.splits,
        )

    def by_library(self, queries: torch.Tensor, is_causal: bool) -> torch.Tensor:
        """Attends with torch's own fused kernel, for sequences of one length.

        Args:
            queries: [num_seqs, num_heads, query_len, HEAD_DIM]
            is_causal: For as many queries as keys.
        """
        keys, values = self.contiguous()
        return attend_by_library(queries, keys, values, is_causal)


def attend_by_library(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_causal: bool
) -> torch.Tensor:
    """Attends with torch's own fused kernel; [num_seqs, heads, tokens, HEAD_DIM] each."""
    return torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=is_causal, scale=SCALE, enable_gqa=True
    )
