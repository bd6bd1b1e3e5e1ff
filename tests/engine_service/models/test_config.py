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
    assert (config.rope.theta, config.rope.scaling) == (1e6, None)
    assert config.dtype == "bfloat16"
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (16, 8, 128)
    assert config.tie_word_embeddings


def test_installed_transformers_config_is_read():
    config = parse_config(
        make_config(SHAPES[0]).to_dict() | {"architectures": ["Qwen3ForCausalLM"]}
    )

    assert config.vocab_size == SHAPES[0].vocab_size
    assert config.rope.theta == 10000.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["GPT2LMHeadModel"]),
        ("architectures", None),
        ("architectures", ["Qwen3ForCausalLM", "Qwen3ForCausalLM"]),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("layer_types", ["full_attention", "linear_attention"]),
        ("layer_types", "full_attention"),
        ("quantization_config", {"quant_method": "fp8"}),
        ("rope_scaling", {"rope_type": "longrope", "factor": 4.0}),
        ("rope_scaling", {"type": "mrope", "mrope_section": [1, 2]}),
        ("rope_scaling", {"rope_type": ["yarn"]}),
        ("rope_scaling", {"rope_type": "linear", "factor": 0.5}),
        ("rope_scaling", {"rope_type": "linear", "factor": 1e30}),
        (
            "rope_scaling",
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4},
        ),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "truncate": 1}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "mscale": -1, "mscale_all_dim": 1}),
        (
            "rope_scaling",
            {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 2**40},
        ),
        ("partial_rotary_factor", 0.5),
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


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
MISTRAL = LLAMA | {
    "architectures": ["MistralForCausalLM"],
    "max_position_embeddings": 32768,
    "num_key_value_heads": 8,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}


MIXED_WINDOWS = {
    "layer_types": ["sliding_attention", "full_attention"] * 14,
    "sliding_window": 32,
    "use_sliding_window": True,
}


def test_first_models_leave_out_what_later_ones_say():
    config = parse_config(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.rope.theta) == (32, 128, 10_000.0)
    assert (config.max_sequence_len, config.dtype) == (2048, "float16")


def test_window_is_that_of_all_layers_of_mistral():
    assert parse_config(MISTRAL).windows == (4096,) * 32
    assert parse_config(MISTRAL | {"sliding_window": None}).windows == (0,) * 32


def test_window_that_no_sequence_outgrows_is_none():
    config = parse_config(VERSION_5 | MIXED_WINDOWS)

    assert config.windows_within(33) == config.windows == (32, 0) * 14
    assert config.windows_within(32) == (0,) * 28


def test_window_is_that_of_the_last_layers_of_qwen():
    window = {"sliding_window": 32, "max_window_layers": 20}
    assert parse_config(VERSION_4 | window).windows == (0,) * 28
    window["use_sliding_window"] = True
    assert parse_config(VERSION_4 | window).windows == (0,) * 20 + (32,) * 8
    assert parse_config(VERSION_4 | window | {"max_window_layers": 99}).windows == (0,) * 28
    assert parse_config(VERSION_4 | window | {"max_window_layers": None}).windows == (0,) * 28


def test_layer_types_say_which_layers_have_a_window():
    assert parse_config(VERSION_5 | MIXED_WINDOWS).windows == (32, 0) * 14


@pytest.mark.parametrize(
    "values",
    [
        VERSION_4 | {"use_sliding_window": True, "max_window_layers": 0},
        VERSION_5 | {"layer_types": ["sliding_attention"] * 28},
        MISTRAL | {"sliding_window": "all"},
        MISTRAL | {"sliding_window": 0},
    ],
)
def test_window_without_a_width_is_refused(values):
    with pytest.raises(StartupError, match=r"sliding_window (is missing|is .*); must be an int"):
        parse_config(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention"] * 27},
        {"layer_types": ["full_attention"] * 27 + ["linear_attention"]},
        {"layer_types": ["full_attention"] * 27 + [None]},
        {"use_sliding_window": True, "max_window_layers": -1},
        {"use_sliding_window": True, "max_window_layers": "all"},
    ],
)
def test_layers_that_cannot_be_told_apart_are_refused(changes):
    with pytest.raises(StartupError, match=r"(layer_types|max_window_layers) is .*; must "):
        parse_config(VERSION_4 | {"sliding_window": 32} | changes)


def test_yarn_makes_room_for_longer_sequences():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = parse_config(VERSION_4 | {"max_position_embeddings": 32768, "rope_scaling": scaling})
    assert config.max_sequence_len == 131072
    assert "factor" in config.max_sequence_len_field
    assert config.rope.scaling.attention_factor == pytest.approx(1.1386, abs=1e-4)


@pytest.mark.parametrize(
    ("scaling", "missing"),
    [
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "linear"}, "factor"),
    ],
)
def test_scaling_without_its_numbers_is_refused(scaling, missing):
    with pytest.raises(StartupError, match=rf"rope_scaling: {missing} is missing; must be a pos"):
        parse_config(VERSION_4 | {"rope_scaling": scaling})


def test_two_different_scalings_are_refused():
    two = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn"}}
    with pytest.raises(StartupError, match=r"rope_scaling is .*; differs from rope_parameters"):
        parse_config(VERSION_4 | two)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused_by_their_method(method):
    with pytest.raises(
        StartupError,
        match=rf'quantization_config is "{method}"; quantized .* supported: bfloat16, float16',
    ):
        parse_config(LLAMA | {"quantization_config": {"quant_method": method, "bits": 4}})
