"""Random sequences in a poisoned paged cache, and attention over them by its definition."""

from dataclasses import dataclass

import torch

from tests.kernels.targets import Target

NO_BLOCK = 2**30
"""Stands in a block table past a sequence's end; following it leaves the address space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of an attention layer and its cache."""

    num_kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    block_size: int = 16

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedInputs:
    """The arguments of both attention functions, and the tokens as they are without a cache."""

    queries: torch.Tensor
    kv_cache: torch.Tensor
    block_table: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    query_lens: list[int]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    scale: float

    def truth(self, window: int = 0) -> torch.Tensor:
        """Attends in float64 by the definition, one sequence and head at a time."""
        outs = []
        start = 0
        for keys, values, query_len in zip(self.keys, self.values, self.query_lens, strict=True):
            queries = self.queries[start : start + query_len].double()
            start += query_len
            seq_len, num_kv_heads, _ = keys.shape
            group = queries.shape[1] // num_kv_heads
            out = torch.zeros(queries.shape, dtype=torch.float64, device=queries.device)
            positions = torch.arange(seq_len, device=queries.device)
            distances = positions[seq_len - query_len :, None] - positions[None, :]
            is_hidden = distances < 0
            if window:
                is_hidden |= distances >= window
            for head in range(queries.shape[1] if seq_len else 0):
                scores = queries[:, head] @ keys[:, head // group].double().T * self.scale
                weights = scores.masked_fill(is_hidden, -torch.inf).softmax(-1)
                out[:, head] = weights @ values[:, head // group].double()
            outs.append(out)
        return torch.cat(outs) if outs else self.queries.double()


def paged_inputs(
    target: Target, shape: Shape, query_lens: list[int], seq_lens: list[int]
) -> PagedInputs:
    """Lays out random sequences in blocks in random order.

    The cache is one layer of an allocation that holds three, block by block; all that no token
    has written, block 0 too, is NaN. Queries are the first part of wider rows. The block table is
    part of a wider one.
    """
    device, block_size = target.device, shape.block_size
    counts = [-(-seq_len // block_size) for seq_len in seq_lens]
    num_blocks = sum(counts) + 3
    heads = (shape.num_kv_heads, block_size, shape.head_dim)
    pool = torch.full((num_blocks, 3, 2, *heads), torch.nan, dtype=target.dtype, device=device)
    kv_cache = pool[:, 1].transpose(0, 1)  # [2, num_blocks, num_kv_heads, block_size, head_dim]
    wide_table = torch.full((len(seq_lens), max(counts, default=0) + 5), NO_BLOCK)
    free = (torch.randperm(num_blocks - 1) + 1).tolist()
    keys, values = [], []
    for seq, (seq_len, count) in enumerate(zip(seq_lens, counts, strict=True)):
        blocks = [free.pop() for _ in range(count)]
        wide_table[seq, 1 : count + 1] = torch.tensor(blocks)
        keys.append(target.randn(seq_len, shape.num_kv_heads, shape.head_dim))
        values.append(target.randn(seq_len, shape.num_kv_heads, shape.head_dim))
        for index, block in enumerate(blocks):
            tokens = slice(index * block_size, min((index + 1) * block_size, seq_len))
            size = tokens.stop - tokens.start
            kv_cache[0, block, :, :size] = keys[-1][tokens].transpose(0, 1)
            kv_cache[1, block, :, :size] = values[-1][tokens].transpose(0, 1)
    num_tokens = sum(query_lens)
    packed = target.randn(num_tokens, shape.num_heads + 3, shape.head_dim)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    return PagedInputs(
        queries=packed[:, : shape.num_heads],
        kv_cache=kv_cache,
        block_table=wide_table.to(device, torch.int32)[:, 1:],
        query_start_loc=starts.to(device, torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        query_lens=query_lens,
        keys=keys,
        values=values,
        scale=shape.head_dim**-0.5,
    )
