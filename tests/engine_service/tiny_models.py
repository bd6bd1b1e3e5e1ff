"""Small models with random weights, made by transformers, and what it says they compute."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from engine_service.models.causal_lm import CausalLM

# With a standard deviation of 0.02 a model repeats one token whatever its cache holds.
INITIALIZER_RANGE = 0.1
_CONFIGS = {"Gemma3": "Gemma3Text"}
"""Families whose configuration has another name than their model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What tells one tiny model from another.

    Attributes:
        family: As transformers' classes begin.
        rope: `rope_parameters`; empty is the default.
        fields: More of config.json.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    is_tied: bool
    hidden_size: int = 64
    num_layers: int = 2
    vocab_size: int = 300
    max_position_embeddings: int = 512
    family: str = "Qwen3"
    rope: Mapping[str, object] = field(default_factory=dict)
    fields: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        tied = "tied" if self.is_tied else "untied"
        name = f"{self.num_heads}x{self.num_kv_heads}x{self.head_dim}-{tied}"
        return "-".join((self.family, name, str(self.rope.get("rope_type", "")), *self.fields))


SHAPES = (
    Shape(num_heads=4, num_kv_heads=4, head_dim=16, is_tied=True),
    Shape(num_heads=4, num_kv_heads=2, head_dim=16, is_tied=False, num_layers=3),
    Shape(num_heads=8, num_kv_heads=2, head_dim=16, is_tied=False),
    Shape(num_heads=4, num_kv_heads=1, head_dim=64, is_tied=True),
)
"""Group sizes 1, 2, 4, 4; the last two have head_dim other than hidden_size / num_heads."""

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}

GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

OTHER_SHAPES = (
    Shape(family="Llama", num_heads=4, num_kv_heads=2, head_dim=16, is_tied=True, rope=LLAMA3_ROPE),
    Shape(family="Llama", num_heads=3, num_kv_heads=3, head_dim=32, is_tied=False, hidden_size=96),
    Shape(
        family="Llama",
        num_heads=9,
        num_kv_heads=3,
        head_dim=16,
        is_tied=False,
        hidden_size=144,
        rope=LINEAR_ROPE,
    ),
    Shape(family="Qwen2", num_heads=14, num_kv_heads=2, head_dim=16, is_tied=True, hidden_size=224),
    Shape(family="Qwen2", num_heads=4, num_kv_heads=2, head_dim=16, is_tied=False, rope=YARN_ROPE),
    Shape(
        family="Qwen2",
        num_heads=5,
        num_kv_heads=5,
        head_dim=16,
        is_tied=False,
        hidden_size=80,
        num_layers=3,
        fields={"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    Shape(
        family="Mistral",
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        is_tied=False,
        fields={"sliding_window": 17},
    ),
    Shape(
        family="Mistral",
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        is_tied=False,
        fields={"sliding_window": None},
    ),
    Shape(
        family="Mistral",
        num_heads=3,
        num_kv_heads=1,
        head_dim=16,
        is_tied=True,
        rope=YARN_ROPE,
        fields={"sliding_window": None},
    ),
    Shape(
        family="Gemma3",
        num_heads=4,
        num_kv_heads=1,
        head_dim=32,
        is_tied=True,
        num_layers=4,
        rope=GEMMA3_ROPE,
        fields={"sliding_window": 9, "sliding_window_pattern": 2, "query_pre_attn_scalar": 20},
    ),
    Shape(
        family="Gemma3",
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        is_tied=False,
        rope=GEMMA3_ROPE,
        fields={"sliding_window": 16},
    ),
    Shape(
        family="Gemma3",
        num_heads=6,
        num_kv_heads=3,
        head_dim=16,
        is_tied=True,
        hidden_size=96,
        num_layers=7,
        rope=GEMMA3_ROPE,
        fields={"sliding_window": 300},
    ),
)
"""Three of each architecture but Qwen3.

Odd numbers of heads, group size 7, biases, scaled rope, windows shorter than prompts.
"""

CUDA_SHAPES = (
    Shape(num_heads=4, num_kv_heads=4, head_dim=64, is_tied=True),
    Shape(num_heads=4, num_kv_heads=2, head_dim=128, is_tied=False, num_layers=3),
    Shape(num_heads=8, num_kv_heads=2, head_dim=64, is_tied=False),
    Shape(num_heads=8, num_kv_heads=1, head_dim=64, is_tied=True),
)
"""Head sizes of real models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """A model folder, and the same model in transformers, float32 on the CPU."""

    folder: Path
    reference: PreTrainedModel

    @property
    def vocab_size(self) -> int:
        return self.reference.config.vocab_size

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Returns the logits behind each token, [num_tokens, vocab_size]."""
        with torch.inference_mode():
            return self.reference(torch.tensor([token_ids])).logits[0]

    def greedy(self, prompt: list[int], num_tokens: int) -> tuple[list[int], float]:
        """Returns transformers' greedy tokens and how close its two best logits ever came."""
        return self.greedy_batch([prompt], num_tokens)[0]

    def greedy_batch(
        self, prompts: list[list[int]], num_tokens: int
    ) -> list[tuple[list[int], float]]:
        """Returns what `greedy` does for each prompt, in little more time than for one."""
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        output = self.reference.generate(
            torch.tensor([[0] * count + p for count, p in zip(padding, prompts, strict=True)]),
            attention_mask=torch.arange(longest) >= torch.tensor(padding)[:, None],
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(output.logits).topk(2).values  # [num_tokens, num_prompts, 2]
        gaps = (best[..., 0] - best[..., 1]).amin(0).tolist()
        return list(zip(output.sequences[:, longest:].tolist(), gaps, strict=True))

    def clear_cases(
        self, prompts: Iterator[list[int]], count: int, num_tokens: int, min_gap: float
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Returns the first prompts whose two best logits stay apart, and their greedy tokens."""
        found: list[tuple[list[int], list[int]]] = []
        while num_missing := count - len(found):
            asked = list(islice(prompts, num_missing))
            answers = self.greedy_batch(asked, num_tokens)
            for prompt, (tokens, gap) in zip(asked, answers, strict=True):
                if gap >= min_gap:
                    found.append((prompt, tokens))
        return [prompt for prompt, _ in found], [tokens for _, tokens in found]


def make_config(shape: Shape, **overrides: object) -> PreTrainedConfig:
    values: dict[str, object] = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": 2 * shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "tie_word_embeddings": shape.is_tied,
        "initializer_range": INITIALIZER_RANGE,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    if shape.rope:
        values["rope_parameters"] = dict(shape.rope)
    config = getattr(transformers, f"{_CONFIGS.get(shape.family, shape.family)}Config")
    return config(**(values | dict(shape.fields) | overrides))


def make_model(
    folder: Path,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> TinyModel:
    """Writes a model folder whose norm weights and biases are random too.

    Equal arguments, equal weights.
    """
    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    causal_lm = getattr(transformers, f"{shape.family}ForCausalLM")
    model = causal_lm(make_config(shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(-0.5, 0.5) if shape.family == "Gemma3" else parameter.uniform_(
                    0.5, 1.5
                )
            elif name.endswith(".bias"):
                parameter.normal_(std=0.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    # Read back, since the conversion rounds the rotary frequencies too, which no checkpoint holds.
    reference = causal_lm.from_pretrained(folder, dtype=torch.float32).eval()
    return TinyModel(folder=folder, reference=reference)


def tensors_of(model: CausalLM) -> dict[str, torch.Tensor]:
    """Returns the tensors of a model of ours, as a checkpoint names them."""
    return {slot.name: slot.target for slot in model.weight_slots()}


def random_tokens(generator: random.Random, num_tokens: int, vocab_size: int) -> list[int]:
    return [generator.randrange(vocab_size) for _ in range(num_tokens)]
