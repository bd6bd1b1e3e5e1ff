"""Step 1: the whole model in plain torch, and an answer without any cache.

Shapes: `tokens` is how many tokens a forward pass computes, whatever sequences they are of.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from examples.guide.common import CHECKPOINT, END, QUESTIONS, Answers, chat, figure, text_of, timed

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries, keys, values of the new tokens) -> what each reads. Later steps go here. Queries
and result are [tokens, query heads, head size], keys and values [tokens, KV heads, head size].
"""


@dataclass(frozen=True)
class Model:
    """A Qwen3: the numbers of config.json that are needed, and the weights."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    rope_theta: float
    epsilon: float
    weights: dict[str, Tensor]

    def embed(self, token_ids: Tensor) -> Tensor:
        """Looks up each token's row of the embedding matrix, [tokens, hidden size]."""
        return self.weights["model.embed_tokens.weight"][token_ids]

    def linear(self, inputs: Tensor, name: str) -> Tensor:
        """Multiplies [tokens, in] by a weight of the checkpoint [out, in]."""
        return functional.linear(inputs, self.weights[f"model.{name}.weight"])

    def norm(self, inputs: Tensor, name: str) -> Tensor:
        """Scales each vector (the last dimension) to a mean square of 1, then by learnt weights."""
        weight = self.weights[f"model.{name}.weight"]
        return functional.rms_norm(inputs, weight.shape, weight, self.epsilon)


def load() -> Model:
    """Reads the demo model; float32, so that sums in another order hardly differ."""
    config = json.loads((CHECKPOINT / "config.json").read_text())
    stored = load_file(CHECKPOINT / "model.safetensors")
    return Model(
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_size=config["head_dim"],
        rope_theta=config["rope_theta"],
        epsilon=config["rms_norm_eps"],
        weights={name: weight.float() for name, weight in stored.items()},
    )


def rotate(vectors: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turns pairs of numbers of each head by angles that grow with the token's position.

    The product of a turned query and a turned key depends on how far apart they are, not on where.
    """
    half = vectors.shape[-1] // 2
    angles = positions[:, None, None] * theta ** (-torch.arange(half) / half)  # [tokens, 1, half]
    first, second = vectors[..., :half], vectors[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Each token's mean of the values that it may see, weighted by how well keys match its query.

    Args:
        queries: [new tokens, query heads, head size].
        keys: [all tokens, KV heads, head size]; several query heads share a KV head.
        values: As the keys.
        mask: [new tokens, all tokens], true where a token may look.
    """
    group = queries.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) / queries.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


def attend_to_these(_: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The first attention of the guide: all tokens are here, each sees those before it."""
    return attention(queries, keys, values, torch.ones(len(keys), len(keys)).tril().bool())


def forward(model: Model, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Returns the last layer's output of these tokens, [tokens, hidden size]."""
    hidden = model.embed(token_ids)
    for index in range(model.num_layers):
        layer, size, theta = f"layers.{index}", model.head_size, model.rope_theta
        inputs = model.norm(hidden, f"{layer}.input_layernorm")
        queries, keys, values = (
            model.linear(inputs, f"{layer}.self_attn.{name}_proj").unflatten(1, (-1, size))
            for name in "qkv"
        )
        queries = rotate(model.norm(queries, f"{layer}.self_attn.q_norm"), positions, theta)
        keys = rotate(model.norm(keys, f"{layer}.self_attn.k_norm"), positions, theta)
        read = attend(index, queries, keys, values).flatten(1)
        hidden = hidden + model.linear(read, f"{layer}.self_attn.o_proj")
        inputs = model.norm(hidden, f"{layer}.post_attention_layernorm")
        gate = functional.silu(model.linear(inputs, f"{layer}.mlp.gate_proj"))
        inputs = gate * model.linear(inputs, f"{layer}.mlp.up_proj")
        hidden = hidden + model.linear(inputs, f"{layer}.mlp.down_proj")
    return model.norm(hidden, "norm")


def logits_of(model: Model, hidden: Tensor) -> Tensor:
    """Returns a score of each token that may come next, [tokens, vocabulary]."""
    return model.linear(hidden, "embed_tokens")


def generate(model: Model, prompt: list[int], max_tokens: int = 64) -> list[int]:
    """Returns the likeliest next token, then the one after it, up to the end of the answer."""
    token_ids = list(prompt)
    while len(token_ids) < len(prompt) + max_tokens and token_ids[-1] != END:
        positions = torch.arange(len(token_ids))
        hidden = forward(model, torch.tensor(token_ids), positions, attend_to_these)
        token_ids.append(int(logits_of(model, hidden[-1:]).argmax()))
    return token_ids[len(prompt) :]


@torch.inference_mode()
def main() -> Answers:
    """Answers a question; then shows what each further token costs."""
    model = load()
    prompt = chat(QUESTIONS[1])
    answer = generate(model, prompt)
    print(text_of(answer))
    figure("weights", f"{sum(weight.numel() for weight in model.weights.values()):,}")
    for length in (64, 256, 1024):
        tokens = torch.arange(length)
        _, seconds = timed(forward, model, tokens, tokens, attend_to_these)
        figure(f"the next token after {length:,} tokens", f"≈ {seconds * 1000:.1f} ms")
    return {tuple(prompt): answer}


if __name__ == "__main__":
    main()
