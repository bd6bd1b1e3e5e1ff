"""A dense decoder, the common structure of Llama, Qwen2, Qwen3 and others.

Each layer is grouped-query attention with rotary positions, then a gated feed-forward block, each
preceded by a root mean square norm. The configuration covers the differences.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from engine_service.layers.attention import (
    Attended,
    Attention,
    AttentionMetadata,
    HeadShape,
)
from engine_service.layers.embedding import Embedding
from engine_service.layers.linear import Linear
from engine_service.layers.norm import RMSNorm
from engine_service.layers.ranks import ALONE, Ranks
from engine_service.layers.residual_stream import ResidualStream
from engine_service.layers.rotary import rotary_table
from engine_service.layers.weight_slot import Shard, WeightSlot
from engine_service.models.causal_lm import distinct_layers
from engine_service.models.decoder_config import DecoderConfig


class DecoderAttention(nn.Module):
    """Attention and the projections before and after it; the layer calls the three in turn."""

    def __init__(
        self,
        config: DecoderConfig,
        window: int,
        table: torch.Tensor,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        heads = HeadShape(
            num_heads=config.num_heads // ranks.size,
            num_kv_heads=config.num_kv_heads_of(ranks.size),
            head_dim=config.head_dim,
        )
        self.qkv_proj = Linear(
            config.hidden_size, sum(heads.packed_sizes), dtype, has_bias=config.has_qkv_bias
        )
        qk_norms = None
        if config.has_qk_norm:
            eps = config.rms_norm_eps
            qk_norms = RMSNorm(heads.head_dim, eps, dtype), RMSNorm(heads.head_dim, eps, dtype)
        self.attention = Attention(
            heads, table, qk_norms, scale=config.attention_scale, window=window
        )
        self.o_proj = Linear(heads.num_heads * heads.head_dim, config.hidden_size, dtype)

    def weight_slots(
        self, prefix: str, config: DecoderConfig, ranks: Ranks
    ) -> Iterator[WeightSlot]:
        """Yields the slots of the projections; each rank has whole heads."""
        width = config.num_heads * config.head_dim
        of_keys = None
        if ranks.size > 1:
            # With more ranks than heads, neighbours share one.
            sharing = max(1, ranks.size // config.num_kv_heads)
            first = ranks.rank * config.num_kv_heads // ranks.size
            of_keys = Shard(
                dim=0,
                begin=first * config.head_dim,
                full_size=config.num_kv_heads * config.head_dim,
                is_replica=ranks.rank % sharing != 0,
            )
        yield from self.qkv_proj.slots(
            [f"{prefix}.{name}_proj" for name in "qkv"],
            self.attention.heads.packed_sizes,
            [ranks.shard(0, width), of_keys, of_keys],
        )
        yield from self.o_proj.slots([f"{prefix}.o_proj"], shards=[ranks.shard(1, width)])


class DecoderMLP(nn.Module):
    """The projections of the gated feed-forward block; the layer calls both in turn."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        width = config.intermediate_size // ranks.size
        self.gate_up_proj = Linear(config.hidden_size, 2 * width, dtype)
        self.down_proj = Linear(width, config.hidden_size, dtype)

    def weight_slots(
        self, prefix: str, config: DecoderConfig, ranks: Ranks
    ) -> Iterator[WeightSlot]:
        """Yields the slots of the projections."""
        width = config.intermediate_size
        yield from self.gate_up_proj.slots(
            [f"{prefix}.gate_proj", f"{prefix}.up_proj"],
            [self.down_proj.in_features] * 2,
            [ranks.shard(0, width)] * 2,
        )
        yield from self.down_proj.slots([f"{prefix}.down_proj"], shards=[ranks.shard(1, width)])


class DecoderLayer(nn.Module):
    """One decoder layer. Each norm first adds its input to the residual stream.

    Each rank has some of the heads and of the feed-forward block's width. Its products are parts of
    sums, which the ranks add up.
    """

    def __init__(
        self,
        config: DecoderConfig,
        window: int,
        table: torch.Tensor,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self._config = config
        self._ranks = ranks
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = DecoderAttention(config, window, table, dtype, ranks)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = DecoderMLP(config, dtype, ranks)

    def attend(
        self,
        stream: ResidualStream,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_cache: torch.Tensor,
        *,
        may_leave_parts: bool,
    ) -> Attended:
        """Stores keys and values; returns the attention output of this rank's heads.

        That of a single token may be left in parts for `add_blocks`, if that is wanted.
        """
        attention = self.self_attn
        # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], of this rank's heads
        qkv = stream.norm_linear(self.input_layernorm, attention.qkv_proj)
        return attention.attention(
            qkv, positions, metadata, kv_cache, may_leave_parts=may_leave_parts
        )

    def add_blocks(self, attended: Attended, stream: ResidualStream) -> None:
        """Adds the attention block and the feed-forward block to the stream.

        Rows are independent, so the stream may have any subset of the rows that `attend` has had.
        """
        stream.add(self.self_attn.o_proj, attended)
        for lane in stream.lanes:
            # [num_rows, intermediate_size / num_ranks]
            gated = lane.norm_gated_linear(self.post_attention_layernorm, self.mlp.gate_up_proj)
            lane.add(self.mlp.down_proj, gated)

    def weight_slots(self, prefix: str) -> Iterator[WeightSlot]:
        """Yields the slot of each checkpoint tensor; the names begin with the prefix."""
        config, ranks = self._config, self._ranks
        yield from self.self_attn.weight_slots(f"{prefix}.self_attn", config, ranks)
        yield from self.mlp.weight_slots(f"{prefix}.mlp", config, ranks)
        attention = self.self_attn.attention
        norms = {
            "input_layernorm": self.input_layernorm,
            "post_attention_layernorm": self.post_attention_layernorm,
            "self_attn.q_norm": attention.q_norm,
            "self_attn.k_norm": attention.k_norm,
        }
        for name, norm in norms.items():
            if norm is not None:
                yield WeightSlot(name=f"{prefix}.{name}.weight", parameter=norm.weight)


class Decoder(nn.Module):
    """The whole model, a `CausalLM`. Built on the current default device, weights not yet set."""

    def __init__(
        self, config: DecoderConfig, max_model_len: int, dtype: torch.dtype, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        self._ranks = ranks
        table = rotary_table(config.head_dim, max_model_len, config.rope.theta, config.rope.scaling)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype, ranks)
        windows = config.windows_within(max_model_len)
        self.layers = nn.ModuleList(
            DecoderLayer(config, window, table, dtype, ranks) for window in windows
        )
        self.distinct_layers = distinct_layers(windows)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        if config.tie_word_embeddings:
            self.lm_head = self.embed_tokens
        else:
            self.lm_head = Embedding(config.vocab_size, config.hidden_size, dtype, ranks)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[torch.Tensor | None],
        output_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `CausalLM.__call__`.

        The last layer computes keys and values of all tokens, and the rest only for the outputs.
        """
        stream = ResidualStream(self.embed_tokens(input_ids), self._ranks)
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            assert isinstance(layer, DecoderLayer)
            if kv_cache is None:
                continue
            of_outputs = output_indices if layer is self.layers[-1] else None
            attended = layer.attend(
                stream,
                positions,
                metadata,
                kv_cache,
                may_leave_parts=self._ranks.size == 1 and of_outputs is None,
            )
            if of_outputs is not None:
                assert isinstance(attended, torch.Tensor), "parts were not wanted"
                attended = attended[of_outputs]
                stream.keep(of_outputs)
            layer.add_blocks(attended, stream)
        return stream.norm(self.norm)

    @property
    def token_ids(self) -> range:
        """As `CausalLM.token_ids`."""
        return self.lm_head.token_ids

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `CausalLM.compute_logits`."""
        return self.lm_head.logits(hidden)

    def weight_slots(self) -> Iterator[WeightSlot]:
        """As `CausalLM.weight_slots`."""
        yield self.embed_tokens.slot("model.embed_tokens.weight")
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            yield from layer.weight_slots(f"model.layers.{index}")
        yield WeightSlot(name="model.norm.weight", parameter=self.norm.weight)
        if self.lm_head is not self.embed_tokens:
            yield self.lm_head.slot("lm_head.weight")
