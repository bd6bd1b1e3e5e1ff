"""Attention over the paged KV cache, and its metadata for a step."""

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import nn

from engine_service.layers.norm import RMSNorm
from kernels.attention_parts import make_counters
from kernels.decode_splits import split_sequences
from kernels.paged_attention_decode import paged_attention_decode
from kernels.paged_attention_prefill import paged_attention_prefill
from kernels.partial_attention import PartialAttention, can_leave_parts, partial_attention
from kernels.qk_norm_rope_store import qk_norm_rope_store
from kernels.shared_prefix import SharedPrefixes

Attended: TypeAlias = torch.Tensor | PartialAttention
"""The attention of some tokens, [num_tokens, num_heads * head_dim], or of one token in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeMetadata:
    """Metadata of the sequences that compute one token each; the others are empty here."""

    seq_lens: torch.Tensor
    """[num_seqs] int32: tokens in the cache after this step's write; 0 for other sequences."""
    max_seq_len: int
    """Upper bound of `seq_lens`, known without a device read."""
    shared: SharedPrefixes | None = None
    """Prefixes that several sequences share, to be read once."""
    _splits: dict[tuple[int, int], torch.Tensor | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def splits(self, num_kv_heads: int, window: int) -> torch.Tensor | None:
        """Returns a plan of the sequences' splits, made once for all layers with these arguments.

        None if they are divided equally. The kernel that makes it must not be the one in front of
        attention, which reads the plan early.
        """
        if self.shared is not None:
            return None
        key = num_kv_heads, window
        if key not in self._splits:
            self._splits[key] = split_sequences(self.seq_lens, self.max_seq_len, *key)
        return self._splits[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillMetadata:
    """Metadata of the sequences that compute several tokens each; the others are empty here."""

    query_start_loc: torch.Tensor
    """[num_seqs + 1] int32: where each sequence's tokens begin; other sequences have none."""
    seq_lens: torch.Tensor
    """[num_seqs] int32: tokens in the cache after this step's write."""
    max_query_len: int
    """Upper bound of the tokens that one sequence computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMetadata:
    """The positions of a step's tokens in the cache.

    Sequences that compute one token come first, so sequence i's token is token i. Both kernels see
    all sequences, so they can be launched without knowing how many sequences are of each kind.
    """

    cache_locs: torch.Tensor
    """[num_tokens] int64: where each token is stored, `block * block_size + offset`; -1 skips."""
    block_table: torch.Tensor
    """[num_seqs, max_blocks_per_seq] int32: logical block to physical block."""
    decode: DecodeMetadata | None
    """None if no sequence computes one token."""
    prefill: PrefillMetadata | None
    """None if no sequence computes several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """The number and size of the attention heads of one rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def packed_sizes(self) -> list[int]:
        """Columns of queries, keys and values in a packed row."""
        num_kv_columns = self.num_kv_heads * self.head_dim
        return [self.num_heads * self.head_dim, num_kv_columns, num_kv_columns]


class Attention(nn.Module):
    """Grouped-query attention with rotated queries and keys, optionally normalised first."""

    def __init__(
        self,
        heads: HeadShape,
        rotary_table: torch.Tensor,
        qk_norms: tuple[RMSNorm, RMSNorm] | None = None,
        *,
        scale: float | None = None,
        window: int = 0,
    ) -> None:
        """Creates the layer.

        Args:
            heads: Those of this rank.
            rotary_table: As `rotary_table` returns it.
            qk_norms: The norms of each head's queries and keys; None leaves them as projected.
            scale: Multiplies the scores; None is the inverse square root of `head_dim`.
            window: The last tokens that each sees, itself included; 0 means all.
        """
        super().__init__()
        self.window = window
        self.heads = heads
        self.scale = heads.head_dim**-0.5 if scale is None else scale
        self.rotary_table = rotary_table
        self.q_norm: RMSNorm | None
        self.k_norm: RMSNorm | None
        self.q_norm, self.k_norm = qk_norms or (None, None)
        # Of this layer alone: another model in this process may run at the same time.
        self._counters = make_counters(rotary_table.device)

    def forward(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_cache: torch.Tensor,
        *,
        may_leave_parts: bool = False,
    ) -> Attended:
        """Stores the tokens' keys and values, then lets each token attend to its past.

        Args:
            qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], packed rows.
            positions: [num_tokens] int64, position of each token in its sequence.
            metadata: The tokens' positions in the cache.
            kv_cache: [2, num_blocks, num_kv_heads, block_size, head_dim], written in place.
            may_leave_parts: Whether the attention of one token may be left in parts.

        Returns:
            [num_tokens, num_heads * head_dim], or the parts.
        """
        decode, splits = metadata.decode, None
        if decode is not None:
            splits = decode.splits(self.heads.num_kv_heads, self.window)
        q_norm, k_norm = self.q_norm, self.k_norm
        q_weight, k_weight, eps = None, None, 0.0
        if q_norm is not None and k_norm is not None:
            q_weight, k_weight, eps = q_norm.weight, k_norm.weight, q_norm.eps
        num_heads = self.heads.num_heads
        new_rows = (
            qkv,
            q_weight,
            k_weight,
            eps,
            self.rotary_table,
            positions,
            metadata.cache_locs,
            kv_cache,
            num_heads,
        )
        if (
            may_leave_parts
            and decode is not None
            and metadata.prefill is None
            and not self.window
            and can_leave_parts(qkv, kv_cache, num_heads, decode.max_seq_len)
        ):
            return partial_attention(*new_rows, metadata.block_table, decode.seq_lens, self.scale)
        queries = qk_norm_rope_store(*new_rows)  # [num_tokens, num_heads, head_dim]
        out = torch.empty_like(queries)
        if decode is not None:
            num_seqs = decode.seq_lens.shape[0]
            paged_attention_decode(
                queries[:num_seqs],
                kv_cache,
                metadata.block_table,
                decode.seq_lens,
                decode.max_seq_len,
                self.scale,
                out[:num_seqs],
                self.window,
                decode.shared,
                self._counters,
                splits,
            )
        if metadata.prefill is not None:
            prefill = metadata.prefill
            paged_attention_prefill(
                queries,
                kv_cache,
                metadata.block_table,
                prefill.query_start_loc,
                prefill.seq_lens,
                prefill.max_query_len,
                self.scale,
                out,
                self.window,
            )
        return out.flatten(1)  # [num_tokens, num_heads * head_dim]
