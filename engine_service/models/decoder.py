"""Qwen3, dense (Qwen3 Technical Report, section 2)."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from engine_service.layers.attention import AttentionMetadata, HeadShape, QKNormAttention
from engine_service.layers.embedding import Embedding
from engine_service.layers.linear import Linear
from engine_service.layers.norm import RMSNorm
from engine_service.layers.rotary import rotary_table
from engine_service.models.config import ModelConfig


class Qwen3Attention(nn.Module):
    """The projections before and behind attention; the layer calls the three in turn."""

    def __init__(self, config: ModelConfig, table: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        heads = HeadShape(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        )
        self.qkv_proj = Linear(config.hidden_size, sum(heads.packed_sizes), dtype)
        self.attention = QKNormAttention(heads, config.rms_norm_eps, table, dtype)
        self.o_proj = Linear(config.num_heads * config.head_dim, config.hidden_size, dtype)


class Qwen3MLP(nn.Module):
    """Gated feed-forward block."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, dtype)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, dtype)

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Maps packed rows, which the layer projected, to [num_tokens, hidden_size]."""
        return self.down_proj.of_gated(gate_up)


class Qwen3Layer(nn.Module):
    """One decoder layer. Each norm first adds what came before it to the residual stream."""

    def __init__(self, config: ModelConfig, table: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Qwen3Attention(config, table, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = Qwen3MLP(config, dtype)

    def attend(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values, and returns the attended rows and the residual stream."""
        attention = self.self_attn
        # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
        qkv, residual = attention.qkv_proj.of_normed(self.input_layernorm, hidden, residual)
        return attention.attention(qkv, positions, metadata, kv_cache), residual

    def transform(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the layer's output, not yet added, and the residual stream to add it to.

        Each row is for itself: this works on any of those that `attend` returns.
        """
        gate_up, residual = self.mlp.gate_up_proj.of_normed(
            self.post_attention_layernorm, self.self_attn.o_proj(attended), residual
        )  # [num_tokens, 2 * intermediate_size]
        return self.mlp(gate_up), residual

    def checkpoint_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields each tensor's name in a checkpoint, and the place for it."""
        attention, mlp = self.self_attn, self.mlp
        heads = attention.attention.heads
        q, k, v = torch.split(attention.qkv_proj.weight, heads.packed_sizes)
        gate, up = mlp.gate_up_proj.weight.chunk(2)
        yield "input_layernorm.weight", self.input_layernorm.weight
        yield "self_attn.q_proj.weight", q
        yield "self_attn.k_proj.weight", k
        yield "self_attn.v_proj.weight", v
        yield "self_attn.q_norm.weight", attention.attention.q_norm.weight
        yield "self_attn.k_norm.weight", attention.attention.k_norm.weight
        yield "self_attn.o_proj.weight", attention.o_proj.weight
        yield "post_attention_layernorm.weight", self.post_attention_layernorm.weight
        yield "mlp.gate_proj.weight", gate
        yield "mlp.up_proj.weight", up
        yield "mlp.down_proj.weight", mlp.down_proj.weight


class Qwen3(nn.Module):
    """The whole model, built on the current default device with its weights not yet set."""

    def __init__(self, config: ModelConfig, max_model_len: int, dtype: torch.dtype) -> None:
        super().__init__()
        table = rotary_table(config.head_dim, max_model_len, config.rope_theta)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.ModuleList(
            Qwen3Layer(config, table, dtype) for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        if config.tie_word_embeddings:
            self.lm_head = self.embed_tokens
        else:
            self.lm_head = Embedding(config.vocab_size, config.hidden_size, dtype)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[torch.Tensor],
        output_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the last hidden states of tokens.

        Args:
            input_ids: [num_tokens] int32.
            positions: [num_tokens] int64, position of each token in its sequence.
            metadata: Where the tokens stand in the cache.
            kv_caches: Per layer [2, num_blocks, num_kv_heads, block_size, head_dim], written in
                place.
            output_indices: [num_outputs] int64, the tokens whose states are wanted; None for all.
                The last layer computes keys and values of all, and the rest only of these.

        Returns:
            [num_outputs, hidden_size].
        """
        hidden: torch.Tensor = self.embed_tokens(input_ids)
        residual: torch.Tensor | None = None
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            assert isinstance(layer, Qwen3Layer)
            attended, residual = layer.attend(hidden, residual, positions, metadata, kv_cache)
            if output_indices is not None and layer is self.layers[-1]:
                attended, residual = attended[output_indices], residual[output_indices]
            hidden, residual = layer.transform(attended, residual)
        hidden, _ = self.norm(hidden, residual)
        return hidden

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores the vocabulary: [num_tokens, hidden_size] to [num_tokens, vocab_size]."""
        return self.lm_head.logits(hidden)

    def checkpoint_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields each tensor's name in a checkpoint, and the place for it."""
        yield "model.embed_tokens.weight", self.embed_tokens.weight
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Qwen3Layer)
            for name, target in layer.checkpoint_tensors():
                yield f"model.layers.{index}.{name}", target
        yield "model.norm.weight", self.norm.weight
        if self.lm_head is not self.embed_tokens:
            yield "lm_head.weight", self.lm_head.weight
