"""The mathematics: every operation of this package in plain torch.

Each function specifies the Triton kernel with the same name and signature, and runs in its place on
a CPU. Read from top to bottom, the file shows what a layer of the model computes;
`sampling_reference.py` shows how a token is drawn. Arithmetic is in float32, whatever the type of
the tensors.

`num_heads` is a multiple of `num_kv_heads`: a group of num_heads / num_kv_heads query heads reads
one key-value head.
"""

import math

import torch
import torch.nn.functional as F


def read_slots(
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    slots: torch.Tensor,
    num_computed_tokens: torch.Tensor,
    query_start_loc: torch.Tensor,
    is_decode: torch.Tensor,
    is_sampled: torch.Tensor,
    num_tokens: int,
    max_query_len: int,
    block_size: int,
) -> tuple[torch.Tensor, ...]:
    """Gathers the inputs of a step's rows from the state kept by slot.

    A row whose num_computed_tokens is -1 is padding, which reads and stores nothing.

    Args:
        tokens: [num_slots, max_model_len] int32
        block_table: [num_slots, max_blocks_per_seq] int32
        slots: [num_rows] int64
        num_computed_tokens: [num_rows] int64, the first position that a row computes
        query_start_loc: [num_rows + 1] int64, where each row's tokens begin in the step
        is_decode: [num_rows] int64, 1 in rows that compute one token, 0 in others
        is_sampled: [num_rows] int64, 1 in rows that yield a token, 0 in others
        num_tokens: the last value of query_start_loc
        max_query_len: an upper bound of the tokens of a row, unused here
        block_size: tokens of one block

    Returns:
        the fields of `kernels.slots.SlotRows`
    """
    query_lens = query_start_loc.diff()  # [num_rows]
    rows = torch.repeat_interleave(query_lens, output_size=num_tokens)  # [num_tokens]
    offsets = torch.arange(num_tokens, device=slots.device) - query_start_loc[rows]
    is_padding = num_computed_tokens < 0
    positions = torch.where(is_padding[rows], 0, num_computed_tokens[rows] + offsets)
    blocks = block_table[slots[rows], positions // block_size].long()
    cache_locs = blocks * block_size + positions % block_size
    seq_lens = torch.where(is_padding, 0, num_computed_tokens + query_lens)
    return (
        torch.where(is_padding[rows], 0, tokens[slots[rows], positions]),
        positions,
        torch.where(is_padding[rows], -1, cache_locs),
        block_table[slots],
        seq_lens.int(),
        (seq_lens * is_decode).int(),
        seq_lens * is_sampled,
    )


def append_tokens(
    tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor
) -> None:
    """Writes each row's new token into its slot; position 0 is padding and writes nothing.

    Args:
        tokens: [num_slots, max_model_len] int32, written in place
        slots: [num_rows] int64
        positions: [num_rows] int64
        token_ids: [num_rows] int64; -1, no token, is written as 0, a valid input ID
    """
    is_written = positions > 0
    tokens[slots[is_written], positions[is_written]] = token_ids[is_written].clamp(min=0).int()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Divides each row by its root mean square and multiplies by the weight.

    The quotient is rounded to the type of x before the multiplication, as in transformers' Qwen3.

    Args:
        x: [num_tokens, hidden]
        weight: [hidden]
        eps: added to the mean square

    Returns:
        [num_tokens, hidden]
    """
    wide = x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # [num_tokens, 1]
    return (wide * inverse_rms).to(x.dtype) * weight


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the residual to x, and normalises the sum.

    Args:
        x: [num_tokens, hidden]
        residual: [num_tokens, hidden]
        weight: [hidden]
        eps: added to the mean square

    Returns:
        the normalised sum and the sum, which is the next residual, both [num_tokens, hidden]
    """
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual


def all_reduce(parts: list[torch.Tensor]) -> torch.Tensor:
    """Adds the tensors of all ranks, in float32 and in the order of ranks.

    Args:
        parts: [num_tokens, hidden] of each rank

    Returns:
        [num_tokens, hidden]
    """
    return _wide_sum(parts).to(parts[0].dtype)


def all_reduce_add_rms_norm(
    parts: list[torch.Tensor], residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the tensors of all ranks and the residual, with one rounding, and normalises the sum.

    Args:
        parts: [num_tokens, hidden] of each rank
        residual: [num_tokens, hidden]
        weight: [hidden]
        eps: added to the mean square

    Returns:
        the normalised sum and the sum, which is the next residual, both [num_tokens, hidden]
    """
    new_residual = (_wide_sum(parts) + residual.float()).to(residual.dtype)
    return rms_norm(new_residual, weight, eps), new_residual


def _wide_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Computes gate * sigmoid(gate) * up, where x holds the gate and then up.

    Args:
        x: [num_tokens, 2 * intermediate]

    Returns:
        [num_tokens, intermediate]
    """
    gate, up = x.float().chunk(2, dim=-1)  # [num_tokens, intermediate] each
    return (F.silu(gate) * up).to(x.dtype)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiplies each row by the transposed weight.

    Args:
        x: [num_tokens, in_features]
        weight: [out_features, in_features]

    Returns:
        [num_tokens, out_features]
    """
    return F.linear(x, weight)


def gated_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Computes gate * sigmoid(gate) * up of two projections of each row.

    Args:
        x: [num_tokens, in_features]
        weight: [2 * out_features, in_features], the rows of the gate and then those of up

    Returns:
        [num_tokens, out_features]
    """
    return silu_and_mul(linear(x, weight))


def norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    *,
    is_gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the residual to x, normalises the sum, and projects it.

    Args:
        x: [num_tokens, in_features]
        residual: [num_tokens, in_features]; None adds nothing
        norm_weight: [in_features]
        eps: added to the mean square
        weight: [out_features, in_features], twice the rows if gated
        is_gated: projects as `gated_linear` does

    Returns:
        the projection, [num_tokens, out_features], and the sum, which is the next residual,
        [num_tokens, in_features]
    """
    normed, total = rms_norm(x, norm_weight, eps), x
    if residual is not None:
        normed, total = add_rms_norm(x, residual, norm_weight, eps)
    return (gated_linear if is_gated else linear)(normed, weight), total


def linear_norm_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    next_weight: torch.Tensor,
    *,
    is_gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projects x, adds the residual, normalises the sum, and projects it, too.

    Args:
        x: [num_tokens, in_features]
        weight: [hidden, in_features]
        residual: [num_tokens, hidden]
        norm_weight: [hidden]
        eps: added to the mean square
        next_weight: [out_features, hidden], twice the rows if gated
        is_gated: the second projection is as that of `gated_linear`

    Returns:
        the second projection, [num_tokens, out_features], and the sum, which is the next residual,
        [num_tokens, hidden]
    """
    projected = linear(x, weight)
    return norm_linear(projected, residual, norm_weight, eps, next_weight, is_gated=is_gated)


def qk_norm_rope_store(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache_locs: torch.Tensor,
    kv_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Normalises and rotates queries and keys, and stores keys and values in the KV cache.

    Each head's vector is divided by its root mean square and multiplied by the weight, then
    rotated: with its halves a and b, (a cos - b sin, b cos + a sin). One rounding, at the end.
    Source: RoFormer (Su et al., 2021), section 3.4, in the half-split order of Hugging Face.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] queries, keys, values
        q_weight: [head_dim]; None, for both weights at once, leaves out the norm
        k_weight: [head_dim]
        eps: added to the mean square; unused without the norm
        cos_sin: [max_position, head_dim] float32, head_dim / 2 cosines and then as many sines
        positions: [num_tokens] int64
        cache_locs: [num_tokens] int64, block * block_size + offset; -1 stores nothing
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], written in place
        num_heads: query heads

    Returns:
        the queries, [num_tokens, num_heads, head_dim]
    """
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    num_packed = num_heads + 2 * num_kv_heads
    heads = qkv.reshape(qkv.shape[0], num_packed, head_dim)  # [num_tokens, num_packed, head_dim]
    num_rotated = num_heads + num_kv_heads
    wide = heads[:, :num_rotated].float()
    if q_weight is not None and k_weight is not None:
        inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        weight = torch.cat(
            (q_weight.expand(num_heads, head_dim), k_weight.expand(num_kv_heads, head_dim))
        )
        wide = wide * inverse_rms * weight
    a, b = wide.chunk(2, dim=-1)  # [num_tokens, num_rotated, head_dim / 2]
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [num_tokens, 1, head_dim / 2]
    rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(qkv.dtype)

    is_stored = cache_locs >= 0
    locations = cache_locs[is_stored]
    blocks, offsets = locations // block_size, locations % block_size
    kv_cache[0, blocks, :, offsets] = rotated[is_stored, num_heads:]
    kv_cache[1, blocks, :, offsets] = heads[is_stored, num_rotated:]
    return rotated[:, :num_heads].contiguous()


def paged_attention_prefill(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    out: torch.Tensor | None = None,
    window: int = 0,
) -> torch.Tensor:
    """Attends causally from the last tokens of each sequence to the tokens before them.

    softmax(scale * q k^T + mask) v per head, where a query at position p sees keys 0 to p, or with
    a window p - window + 1 to p.
    Sequence i's queries are rows query_start_loc[i] to query_start_loc[i + 1], and are the last of
    its seq_lens[i] tokens, whose keys and values are all in the cache.

    Args:
        queries: [num_tokens, num_heads, head_dim]
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]
        block_table: [num_seqs, max_blocks_per_seq] int32; not read past a sequence's end, or before
            the window
        query_start_loc: [num_seqs + 1] int32
        seq_lens: [num_seqs] int32
        max_query_len: the largest query length, or an upper bound; the kernel sizes its tiles by it
        scale: multiplies the scores
        out: [num_tokens, num_heads, head_dim], receives the result; None allocates a tensor
        window: tokens that each query sees at most, its own among them; 0 means all

    Returns:
        [num_tokens, num_heads, head_dim]; rows that belong to no sequence are not set
    """
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    group = queries.shape[1] // num_kv_heads
    if out is None:
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    starts = query_start_loc.tolist()
    for seq, seq_len in enumerate(seq_lens.tolist()):
        rows = slice(starts[seq], starts[seq + 1])
        query_len = rows.stop - rows.start
        if query_len == 0:
            continue
        is_windowed = 0 < window < seq_len
        # Blocks before the window may be another sequence's by now.
        first_block = max(0, seq_len - query_len - window + 1) // block_size if is_windowed else 0
        blocks = block_table[seq, first_block : -(-seq_len // block_size)].long()
        num_keys = seq_len - first_block * block_size
        keys, values = (
            half[blocks].transpose(0, 1).flatten(1, 2)[:, None, :num_keys].float()
            for half in kv_cache
        )  # [num_kv_heads, 1, num_keys, head_dim] each
        grouped = (queries[rows].float().reshape(query_len, num_kv_heads, group, head_dim)).permute(
            1, 2, 0, 3
        )  # [num_kv_heads, group, query_len, head_dim]
        is_seen = None
        if is_windowed or 1 < query_len < seq_len:
            ones = torch.ones(query_len, num_keys, dtype=torch.bool, device=queries.device)
            is_seen = ones.tril(num_keys - query_len)
            if is_windowed:
                is_seen = is_seen.triu(num_keys - query_len - window + 1)
        attended = F.scaled_dot_product_attention(
            grouped,
            keys.expand(-1, group, -1, -1),
            values.expand(-1, group, -1, -1),
            attn_mask=is_seen,
            is_causal=is_seen is None and query_len == seq_len,
            scale=scale,
        )
        out[rows] = attended.permute(2, 0, 1, 3).flatten(1, 2).to(out.dtype)
    return out


def paged_attention_decode(
    queries: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seq_len: int,
    scale: float,
    out: torch.Tensor | None = None,
    window: int = 0,
) -> torch.Tensor:
    """Attends from the last token of each sequence to its tokens.

    Args:
        queries: [num_seqs, num_heads, head_dim], the queries at positions seq_lens - 1
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim]
        block_table: [num_seqs, max_blocks_per_seq] int32; not read past a sequence's end
        seq_lens: [num_seqs] int32; a sequence of length 0 reads nothing and gives zeros
        max_seq_len: an upper bound of seq_lens; the kernel splits its work by it
        scale: multiplies the scores
        out: [num_seqs, num_heads, head_dim], receives the result; rows of sequences of length 0
            stay unchanged; None allocates a tensor
        window: tokens that each query sees at most, its own among them; 0 means all

    Returns:
        [num_seqs, num_heads, head_dim]
    """
    num_seqs, num_heads, head_dim = queries.shape
    num_kv_heads, block_size = kv_cache.shape[2:4]
    if num_seqs == 0:
        return torch.empty_like(queries) if out is None else out
    num_blocks = -(-int(seq_lens.max()) // block_size)
    indices = torch.arange(num_blocks, device=queries.device)
    is_used = indices * block_size < seq_lens[:, None]  # [num_seqs, num_blocks]
    if window:
        is_used &= (indices + 1) * block_size > seq_lens[:, None] - window
    blocks = block_table[:, :num_blocks].long().where(is_used, 0)
    tokens = torch.arange(num_blocks * block_size, device=queries.device)
    is_hidden = tokens >= seq_lens[:, None]  # [num_seqs, length]
    if window:
        is_hidden |= tokens < seq_lens[:, None] - window
    is_hidden = is_hidden[:, None, None, :]
    keys, values = (
        half.index_select(0, blocks.flatten())
        .unflatten(0, blocks.shape)
        .transpose(1, 2)
        .flatten(2, 3)
        .float()
        for half in kv_cache
    )  # [num_seqs, num_kv_heads, length, head_dim] each
    # Unwritten entries may hold anything, and 0 * NaN is NaN.
    values = values.masked_fill_(is_hidden.transpose(2, 3), 0.0)
    group = num_heads // num_kv_heads
    grouped = queries.float().reshape(num_seqs, num_kv_heads, group, head_dim)
    scores = (grouped @ keys.transpose(2, 3)).mul_(scale)
    weights = torch.softmax(scores.masked_fill_(is_hidden, -torch.inf), dim=-1)
    # The softmax of a sequence of length 0 is NaN.
    weights = weights.masked_fill_(is_hidden, 0.0)
    mixed: torch.Tensor = weights @ values  # [num_seqs, num_kv_heads, group, head_dim]
    mixed = mixed.flatten(1, 2).to(queries.dtype)  # [num_seqs, num_heads, head_dim]
    if out is None:
        return mixed
    return out.copy_(torch.where((seq_lens > 0)[:, None, None], mixed, out))


def partial_attention(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache_locs: torch.Tensor,
    kv_cache: torch.Tensor,
    num_heads: int,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    max_parts: int,
    part_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Does what `qk_norm_rope_store` and `paged_attention_decode` do for one token, in parts.

    Args:
        qkv: [1, (num_heads + 2 * num_kv_heads) * head_dim], the token's queries, keys, values
        q_weight: as of `qk_norm_rope_store`, like the next six
        k_weight: likewise
        eps: likewise
        cos_sin: likewise
        positions: likewise
        cache_locs: likewise
        kv_cache: likewise
        num_heads: likewise
        block_table: [1, max_blocks_per_seq] int32; not read past the sequence's end
        seq_lens: [1] int32, with the token; 0 gives a part of zeros
        scale: multiplies the scores
        max_parts: the most parts of a sequence
        part_tokens: tokens of a part

    Returns:
        for each part, the sums of values, [max_parts, num_heads, head_dim] float32, weighted by the
        powers of 2 of the scores less the largest; and this and the sum of the weights,
        [max_parts, num_heads, 2] float32. Parts without tokens have zeros, and -inf as the largest
    """
    queries = qk_norm_rope_store(
        qkv, q_weight, k_weight, eps, cos_sin, positions, cache_locs, kv_cache, num_heads
    )
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    length = int(seq_lens)
    tokens = torch.arange(length, device=qkv.device)
    blocks = block_table[0, tokens // block_size].long()
    keys, values = kv_cache[:, blocks, :, tokens % block_size].float().unbind(1)
    # [length, num_heads, head_dim]
    keys, values = (
        half.repeat_interleave(num_heads // num_kv_heads, dim=1) for half in (keys, values)
    )
    scores = (queries.float() * keys).sum(-1) * scale * math.log2(math.e)  # [length, num_heads]
    mixed = qkv.new_zeros((max_parts, num_heads, head_dim), dtype=torch.float32)
    scales = qkv.new_zeros((max_parts, num_heads, 2), dtype=torch.float32)
    scales[..., 0] = -math.inf
    for part, start in enumerate(range(0, length, part_tokens)):
        of_part = slice(start, start + part_tokens)
        largest = scores[of_part].amax(0)  # [num_heads]
        weights = torch.exp2(scores[of_part] - largest).to(qkv.dtype).float()
        mixed[part] = (weights.unsqueeze(-1) * values[of_part]).sum(0)
        scales[part] = torch.stack((largest, weights.sum(0)), dim=-1)
    return mixed, scales


def combine_parts(mixed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Combines the parts of `partial_attention`.

    Args:
        mixed: [num_parts, num_heads, head_dim] float32
        scales: [num_parts, num_heads, 2] float32

    Returns:
        [1, num_heads * head_dim] float32, zeros without any token
    """
    largest, totals = scales.unbind(-1)  # [num_parts, num_heads]
    factors = torch.exp2(largest - largest.amax(0).clamp(min=torch.finfo(torch.float32).min))
    total = (factors * totals).sum(0)  # [num_heads]
    attended = (mixed * factors.unsqueeze(-1)).sum(0) / total.where(total > 0, 1.0).unsqueeze(-1)
    return attended.flatten().unsqueeze(0)
