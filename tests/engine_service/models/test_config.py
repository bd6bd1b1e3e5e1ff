import pytest

from engine_service.errors import StartupError
from engine_service.models.config import parse_config
from tests.engine_service.tiny_models import SHAPES, make_config

VERSION_4 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""Qwen/Qwen3-0.6B, as transformers 4 wrote it."""

VERSION_5 = {
    key: value
    for key, value in VERSION_4.items()
    if key not in ("rope_scaling", "rope_theta", "torch_dtype")
} | {
    "dtype": "bfloat16",
    "layer_types": ["full_attention"] * 28,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "transformers_version": "5.17.0",
}


def test_both_styles_of_transformers_say_the_same():
    config = parse_config(VERSION_4)

    assert config == parse_config(VERSION_5)
    assert config.rope_theta == 1e6
    assert config.dtype == "bfloat16"
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (16, 8, 128)
    assert config.tie_word_embeddings


def test_installed_transformers_config_is_read():
    config = parse_config(
        make_config(SHAPES[0]).to_dict() | {"architectures": ["Qwen3ForCausalLM"]}
    )

    assert config.vocab_size == SHAPES[0].vocab_size
    assert config.rope_theta == 10000.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["LlamaForCausalLM"]),
        ("architectures", None),
        ("architectures", ["Qwen3ForCausalLM", "Qwen3ForCausalLM"]),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("quantization_config", {"quant_method": "fp8"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
        ("rope_parameters", [1e6]),
        ("rope_theta", None),
        ("rope_theta", -1),
        ("rope_theta", "1e6"),
        ("rope_theta", float("nan")),
        ("rope_theta", float("inf")),
        ("vocab_size", None),
        ("vocab_size", 0),
        ("hidden_size", "1024"),
        ("hidden_size", 1024.0),
        ("intermediate_size", -3),
        ("num_hidden_layers", True),
        ("num_attention_heads", None),
        ("num_key_value_heads", 3),
        ("head_dim", None),
        ("head_dim", 127),
        ("head_dim", 1_000_000),
        ("num_hidden_layers", 1_000_000),
        ("max_position_embeddings", 1_000_000_000),
        ("vocab_size", 2**31),
        ("hidden_size", 2**70),
        ("intermediate_size", 10**4000),
        ("num_attention_heads", 2**20),
        ("num_key_value_heads", 2**20),
        ("hidden_act", "x" * 10_000),
        ("rope_theta", {"a": list(range(10_000))}),
        ("max_position_embeddings", []),
        ("rms_norm_eps", 0),
        ("initializer_range", -0.1),
        ("tie_word_embeddings", "yes"),
        ("torch_dtype", "float8_e4m3fn"),
    ],
)
def test_refusal_names_file_field_and_value(field, value):
    with pytest.raises(StartupError) as refusal:
        parse_config(VERSION_4 | {field: value}, "/models/x/config.json")

    message = str(refusal.value)
    named = field if field != "rope_parameters" else "rope_"
    assert message.startswith("/models/x/config.json: ")
    assert named in message
    assert "is missing" in message if value is None else "is missing" not in message
    assert "supported" in message or "must be" in message
    assert len(message) < 400
    assert "\n" not in message
