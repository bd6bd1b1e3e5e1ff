"""Qwen3 in plain PyTorch, for training; parameters are named as in a Hugging Face checkpoint.

The architecture is that of the Qwen3 technical report (https://arxiv.org/abs/2505.09388), section
2: grouped-query attention with normalised queries and keys, rotary positions, SwiGLU, pre-norm
with RMSNorm, and here tied embeddings.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

RMS_NORM_EPS = 1e-6
IGNORED = -100
"""Target of a token that is not to be learnt."""
Mask = BlockMask | Tensor
"""Which tokens each one sees: on a GPU in blocks, on a CPU [num_rows, 1, row_size, row_size]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of the model."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 7
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    rope_theta: float = 100_000.0


class Attention(nn.Module):
    """Causal self-attention within each conversation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._head_dim = shape.head_dim
        self._num_heads, self._num_kv_heads = shape.num_heads, shape.num_kv_heads
        query_size = shape.num_heads * shape.head_dim
        kv_size = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=RMS_NORM_EPS)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=RMS_NORM_EPS)

    def forward(self, hidden: Tensor, rotation: Tensor, mask: Mask) -> Tensor:
        """Attends.

        Args:
            hidden: [num_rows, row_size, hidden_size]
            rotation: [2, num_rows, 1, row_size, head_dim / 2], cosines and sines
            mask: which tokens each token sees

        Returns:
            [num_rows, row_size, hidden_size]
        """
        num_rows, row_size, _ = hidden.shape

        def heads(projected: Tensor, count: int) -> Tensor:
            return projected.view(num_rows, row_size, count, self._head_dim)

        # Norms and rotation in float32, also under autocast.
        queries = self.q_norm(heads(self.q_proj(hidden), self._num_heads).float())
        keys = self.k_norm(heads(self.k_proj(hidden), self._num_kv_heads).float())
        values = heads(self.v_proj(hidden), self._num_kv_heads).transpose(1, 2)
        queries = rotate(queries.transpose(1, 2), rotation).to(values.dtype)
        keys = rotate(keys.transpose(1, 2), rotation).to(values.dtype)
        if isinstance(mask, BlockMask):
            attended = flex_attention(queries, keys, values, block_mask=mask, enable_gqa=True)
            assert isinstance(attended, Tensor)
        else:
            attended = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, enable_gqa=True
            )
        return self.o_proj(attended.transpose(1, 2).reshape(num_rows, row_size, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps [..., hidden_size] to the same."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    """Attention and MLP, each with its norm before it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=RMS_NORM_EPS)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=RMS_NORM_EPS)
        self.mlp = MLP(shape)

    def forward(self, hidden: Tensor, rotation: Tensor, mask: Mask) -> Tensor:
        """Maps [num_rows, row_size, hidden_size] to the same; see `Attention.forward`."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    """Embedding, layers and last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=RMS_NORM_EPS)

    def forward(self, token_ids: Tensor, positions: Tensor, mask: Mask) -> Tensor:
        """Maps tokens and positions, both [num_rows, row_size], to [..., hidden_size]."""
        rotation = rotary(positions, self._shape)
        hidden = self.embed_tokens(token_ids)
        for layer in self.layers:
            hidden = layer(hidden, rotation, mask)
        return self.norm(hidden)


class Qwen3(nn.Module):
    """The language model; its head is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Decoder(shape)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # So that at first each layer adds little, and no token is likelier than another.
                is_out = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * shape.num_layers) ** -0.5 if is_out else 1.0
                fan_in = shape.hidden_size if "embed" in name else parameter.shape[1]
                nn.init.normal_(parameter, std=0.5 * fan_in**-0.5 * scale)

    def forward(self, token_ids: Tensor, targets: Tensor, positions: Tensor, mask: Mask) -> Tensor:
        """Returns the mean cross-entropy of the targets.

        Args:
            token_ids: [num_rows, row_size]
            targets: [num_rows, row_size], the next token of each or `IGNORED`
            positions: [num_rows, row_size], within the conversation
            mask: which tokens each token sees
        """
        hidden = self.model(token_ids, positions, mask)
        logits = F.linear(hidden, self.model.embed_tokens.weight)  # [rows, row_size, vocab_size]
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def rotary(positions: Tensor, shape: Shape) -> Tensor:
    """Maps [num_rows, row_size] to cosines and sines [2, num_rows, 1, row_size, head_dim / 2]."""
    exponents = torch.arange(0, shape.head_dim, 2, device=positions.device) / shape.head_dim
    angles = positions[:, None, :, None] * shape.rope_theta**-exponents
    return torch.stack((angles.cos(), angles.sin()))


def rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Rotates the pairs (i, i + head_dim / 2) of [num_rows, num_heads, row_size, head_dim]."""
    cosines, sines = rotation
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
