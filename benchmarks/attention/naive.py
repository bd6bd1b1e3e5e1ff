"""Attention as one would first write it: what the fast kernels are measured against."""
# ruff: noqa: ANN001, ANN202, PLR0913 - Triton signatures

import torch
import triton
import triton.language as tl


def attention_by_torch(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attends causally with the whole matrix of scores in memory.

    Args:
        queries: [num_seqs, num_heads, seq_len, head_dim]
        keys: [num_seqs, num_kv_heads, seq_len, head_dim]
        values: likewise
        scale: multiplies the scores

    Returns:
        [num_seqs, num_heads, seq_len, head_dim]
    """
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = queries @ keys.transpose(2, 3) * scale
    is_hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(is_hidden, -torch.inf).softmax(-1) @ values


def attention_by_naive_triton(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attends causally with a program per query and head, and no matrix units; as above."""
    num_seqs, num_heads, seq_len, head_dim = queries.shape
    out = torch.empty_like(queries)
    _naive_kernel[(seq_len, num_heads, num_seqs)](
        queries,
        keys,
        values,
        out,
        seq_len,
        scale,
        GROUP=num_heads // keys.shape[1],
        HEAD_DIM=head_dim,
        TILE=64,
    )
    return out


@triton.jit
def _naive_kernel(
    queries,
    keys,
    values,
    out,
    seq_len,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
):
    position, head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_heads = tl.num_programs(1)
    dims = tl.arange(0, HEAD_DIM)
    place = ((seq * num_heads + head) * seq_len + position) * HEAD_DIM + dims
    query = tl.load(queries + place).to(tl.float32)
    kv_start = (seq * (num_heads // GROUP) + head // GROUP) * seq_len
    maximum, total = float("-inf"), 0.0
    mixed = tl.zeros([HEAD_DIM], tl.float32)
    for start in range(0, position + 1, TILE):
        tokens = start + tl.arange(0, TILE)
        is_seen = tokens <= position
        places = (kv_start + tokens)[:, None] * HEAD_DIM + dims[None, :]
        key = tl.load(keys + places, mask=is_seen[:, None], other=0.0).to(tl.float32)
        value = tl.load(values + places, mask=is_seen[:, None], other=0.0).to(tl.float32)
        scores = tl.sum(key * query[None, :], axis=1) * scale
        scores = tl.where(is_seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=0))
        weights = tl.exp(scores - new_maximum)
        correction = tl.exp(maximum - new_maximum)
        total = total * correction + tl.sum(weights, axis=0)
        mixed = mixed * correction + tl.sum(value * weights[:, None], axis=0)
        maximum = new_maximum
    tl.store(out + place, (mixed / total).to(out.dtype.element_ty))


def decode_by_torch_loop(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: list[int],
    scale: float,
) -> torch.Tensor:
    """Attends for one sequence after the other, each gathered from its blocks.

    Args:
        queries: [num_seqs, num_heads, head_dim]
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]
        block_table: [num_seqs, max_blocks_per_seq]
        seq_lens: tokens of each sequence
        scale: multiplies the scores

    Returns:
        [num_seqs, num_heads, head_dim]
    """
    num_kv_heads, block_size = kv_cache.shape[2:4]
    group = queries.shape[1] // num_kv_heads
    outs = []
    for seq, seq_len in enumerate(seq_lens):
        blocks = block_table[seq, : -(-seq_len // block_size)].long()
        keys, values = (
            half[blocks].transpose(0, 1).flatten(1, 2)[:, :seq_len].repeat_interleave(group, 0)
            for half in kv_cache
        )  # [num_heads, seq_len, head_dim] each
        scores = queries[seq, :, None] @ keys.transpose(1, 2) * scale
        outs.append((scores.softmax(-1) @ values)[:, 0])
    return torch.stack(outs)
