"""Gemma 3's configuration, as transformers 4 and 5 write it."""

import pytest

from engine_service.errors import StartupError
from engine_service.layers.rope_scaling import LinearScaling
from engine_service.models.config import parse_config

VERSION_4 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 64,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}
VERSION_5 = {
    key: value
    for key, value in VERSION_4.items()
    if not key.startswith(("rope_", "sliding_window_"))
} | {
    "layer_types": ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(26)],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
    },
}


@pytest.mark.parametrize("values", [VERSION_4, VERSION_5], ids=["4", "5"])
def test_both_styles_of_transformers_say_the_same(values):
    config = parse_config(values)

    assert config.windows == ((512,) * 5 + (0,)) * 4 + (512,) * 2
    assert (config.rope.theta, config.rope.scaling) == (1e6, LinearScaling(factor=8.0))
    assert (config.local_rope.theta, config.local_rope.scaling) == (1e4, None)
    assert config.attention_scale == 0.125
    assert config.tie_word_embeddings


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (VERSION_4 | {"hidden_activation": "silu"}, "hidden_activation"),
        (VERSION_4 | {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (VERSION_4 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (VERSION_4 | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (VERSION_4 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        (VERSION_4 | {"rope_local_base_freq": "x"}, "rope_local_base_freq"),
        (VERSION_4 | {"rope_scaling": "linear"}, "rope_scaling"),
        (VERSION_4 | {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        (VERSION_4 | {"sliding_window": None}, "sliding_window"),
        (VERSION_4 | {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        (VERSION_5 | {"rope_parameters": {"full_attention": {}}}, "sliding_attention"),
        (VERSION_5 | {"layer_types": ["full_attention"]}, "layer_types"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusal_names_the_field(values, field):
    with pytest.raises(StartupError, match=rf"config\.json: .*{field}"):
        parse_config(values)
