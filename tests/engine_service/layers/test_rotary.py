"""Rotary tables are those of transformers, to the last bit."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine_service.layers.rotary import rotary_table
from engine_service.models.config_fields import ConfigFields
from engine_service.models.rope_config import read_rope

NUM_POSITIONS = 40_000
ORIGINAL = {"original_max_position_embeddings": 8192}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
# As long as transformers expects it to be, so that it does not warn.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10_000}


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("theta", [10_000.0, 1e6])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3 | {"factor": 8.0},
        LLAMA3 | {"factor": 32.0},
        YARN,
        YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
        YARN | {"beta_fast": 1.0001, "beta_slow": 1},
        YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
        YARN | {"mscale": 1.0, "mscale_all_dim": 0},
        YARN | {"attention_factor": 1.3},
    ],
    ids=lambda rope: "-".join(map(str, rope.values())),
)
def test_table_equals_that_of_transformers(rope, theta, head_dim):
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=NUM_POSITIONS,
        rope_parameters=rope | {"rope_theta": theta},
    )
    positions = torch.arange(NUM_POSITIONS)[None]
    halves = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    expected = torch.cat([half[0, :, : head_dim // 2] for half in halves], dim=-1)

    read = read_rope(ConfigFields(config.to_dict(), "config.json"), None)
    table = rotary_table(head_dim, NUM_POSITIONS, read.theta, read.scaling)

    assert table.dtype == torch.float32
    assert torch.equal(table, expected)
