"""Gemma 3, text only (Gemma 3 Technical Report, section 2).

Both blocks of a layer have a norm behind them as well, so that their sums over ranks cannot wait
for the next norm as those of `Decoder` do. Norms are stored as their distance from 1. Five of six
layers have a window, and a rotary embedding of their own.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from engine_service.layers.attention import AttentionMetadata
from engine_service.layers.embedding import Embedding
from engine_service.layers.norm import RMSNorm
from engine_service.layers.ranks import ALONE, Ranks
from engine_service.layers.rotary import rotary_table
from engine_service.layers.weight_slot import WeightSlot
from engine_service.models.causal_lm import distinct_layers
from engine_service.models.decoder import DecoderAttention, DecoderMLP
from engine_service.models.gemma3 import Gemma3Config


class Gemma3Layer(nn.Module):
    """One decoder layer; it passes on the residual stream and what is to be added to it."""

    def __init__(
        self,
        config: Gemma3Config,
        window: int,
        table: torch.Tensor,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self._config = config
        self._ranks = ranks

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

        self.input_layernorm = norm()
        self.self_attn = DecoderAttention(config, window, table, dtype, ranks)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = DecoderMLP(config, dtype, ranks)
        self.post_feedforward_layernorm = norm()

    def attend(
        self,
        normed: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Stores keys and values; returns the attention output of this rank's heads.

        Args:
            normed: [num_tokens, hidden_size].
            positions: As `CausalLM.__call__`, like the others.
            metadata: Likewise.
            kv_cache: This layer's.
        """
        qkv = self.self_attn.qkv_proj(normed)
        attended: torch.Tensor = self.self_attn.attention(qkv, positions, metadata, kv_cache)
        return attended

    def add_blocks(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what is to be added to the stream, and the stream, of any subset of the rows."""
        ranks, mlp = self._ranks, self.mlp
        total = ranks.all_reduce(self.self_attn.o_proj(attended))
        added = self.post_attention_layernorm.alone(total)
        normed, residual = self.pre_feedforward_layernorm(added, residual)
        gate, up = mlp.gate_up_proj(normed).chunk(2, dim=-1)
        total = ranks.all_reduce(mlp.down_proj(functional.gelu(gate, approximate="tanh") * up))
        return self.post_feedforward_layernorm.alone(total), residual

    def weight_slots(self, prefix: str) -> Iterator[WeightSlot]:
        """Yields the slot of each checkpoint tensor; the names begin with the prefix."""
        yield from self.self_attn.weight_slots(f"{prefix}.self_attn", self._config, self._ranks)
        yield from self.mlp.weight_slots(f"{prefix}.mlp", self._config, self._ranks)
        attention = self.self_attn.attention
        norms = {
            "input_layernorm": self.input_layernorm,
            "post_attention_layernorm": self.post_attention_layernorm,
            "pre_feedforward_layernorm": self.pre_feedforward_layernorm,
            "post_feedforward_layernorm": self.post_feedforward_layernorm,
            "self_attn.q_norm": attention.q_norm,
            "self_attn.k_norm": attention.k_norm,
        }
        for name, norm in norms.items():
            assert norm is not None
            yield _norm_slot(f"{prefix}.{name}", norm)


class Gemma3Decoder(nn.Module):
    """The whole model, a `CausalLM`. Built on the current default device, weights not yet set."""

    def __init__(
        self, config: Gemma3Config, max_model_len: int, dtype: torch.dtype, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        table, local_table = (
            rotary_table(config.head_dim, max_model_len, rope.theta, rope.scaling)
            for rope in (config.rope, config.local_rope)
        )
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype, ranks)
        # Rounded to the dtype as in the training.
        self._embedding_scale = float(torch.tensor(config.hidden_size**0.5, device="cpu").to(dtype))
        windows = config.windows_within(max_model_len)
        self.layers = nn.ModuleList(
            Gemma3Layer(config, window, local_table if is_local else table, dtype, ranks)
            for window, is_local in zip(windows, config.windows, strict=True)
        )
        self.distinct_layers = distinct_layers(windows)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.lm_head = self.embed_tokens
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.hidden_size, dtype, ranks)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        kv_caches: Sequence[torch.Tensor | None],
        output_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `CausalLM.__call__`."""
        added = self.embed_tokens(input_ids) * self._embedding_scale
        residual = torch.zeros_like(added)
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            assert isinstance(layer, Gemma3Layer)
            if kv_cache is None:
                continue
            normed, residual = layer.input_layernorm(added, residual)
            attended = layer.attend(normed, positions, metadata, kv_cache)
            if output_indices is not None and layer is self.layers[-1]:
                attended, residual = attended[output_indices], residual[output_indices]
            added, residual = layer.add_blocks(attended, residual)
        normed, _ = self.norm(added, residual)
        return normed

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
            assert isinstance(layer, Gemma3Layer)
            yield from layer.weight_slots(f"model.layers.{index}")
        yield _norm_slot("model.norm", self.norm)
        if self.lm_head is not self.embed_tokens:
            yield self.lm_head.slot("lm_head.weight")


def _norm_slot(name: str, norm: RMSNorm) -> WeightSlot:
    return WeightSlot(name=f"{name}.weight", parameter=norm.weight, added=1.0)
