"""Gemma 3, text only (Gemma 3 Technical Report, section 2): its configuration."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine_service.models.architecture import Architecture
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, DecoderTraits, read_decoder_config
from engine_service.models.rope_config import RopeConfig, read_rope

if TYPE_CHECKING:
    import torch

    from engine_service.layers.ranks import Ranks
    from engine_service.models.causal_lm import CausalLM

_TRAITS = DecoderTraits(has_qk_norm=True, window_switch="sliding_window")
_MAX_PATTERN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Config(DecoderConfig):
    """Of a decoder whose layers with a window have a rotary embedding of their own."""

    local_rope: RopeConfig
    """That of the layers with a window; `rope` is that of the others."""


def _read_config(architecture: str, fields: ConfigFields) -> Gemma3Config:
    for name, supported in (
        ("attention_bias", False),
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("use_bidirectional_attention", False),
        ("attn_logit_softcapping", None),
        ("final_logit_softcapping", None),
    ):
        fields.must_be(name, supported)
    ropes = _rope_parameters(fields)
    changes = {
        "rope_parameters": ropes["full_attention"],
        "rope_scaling": None,
        "layer_types": fields.get("layer_types", _default_layer_types(fields)),
        "tie_word_embeddings": fields.get("tie_word_embeddings", True),
        "head_dim": fields.get("head_dim", 256),
        "num_key_value_heads": fields.get("num_key_value_heads", 4),
    }
    base = read_decoder_config(architecture, fields.changed(changes), _TRAITS)
    local = fields.changed(changes | {"rope_parameters": ropes["sliding_attention"]})
    scalar = fields.positive_float("query_pre_attn_scalar", 256.0)
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    values["attention_scale"] = scalar**-0.5
    return Gemma3Config(**values, local_rope=read_rope(local, None))


def _rope_parameters(fields: ConfigFields) -> Mapping[str, Mapping[str, object]]:
    """Returns the rotary embeddings by the type of layer, as transformers 5 has them."""
    given = fields.get("rope_parameters", {})
    if isinstance(given, dict) and given.keys() & {"full_attention", "sliding_attention"}:
        for layer_type in ("full_attention", "sliding_attention"):
            if not isinstance(given.get(layer_type), dict):
                raise fields.refuse("rope_parameters", given, f"must have an object {layer_type}")
        return given
    scaling = fields.get("rope_scaling", {})
    if not isinstance(scaling, dict):
        raise fields.refuse("rope_scaling", scaling, "must be an object or null")
    theta = fields.positive_float("rope_theta", 1_000_000.0)
    local_theta = fields.positive_float("rope_local_base_freq", 10_000.0)
    return {
        "full_attention": {**scaling, "rope_theta": theta},
        "sliding_attention": {"rope_theta": local_theta},
    }


def _default_layer_types(fields: ConfigFields) -> list[str]:
    pattern = fields.positive_int("sliding_window_pattern", _MAX_PATTERN, 6)
    num_layers = fields.positive_int("num_hidden_layers", 512)
    return [
        "sliding_attention" if number % pattern else "full_attention"
        for number in range(1, num_layers + 1)
    ]


def _build(
    config: Gemma3Config, max_model_len: int, dtype: "torch.dtype", ranks: "Ranks"
) -> "CausalLM":
    from engine_service.models.gemma3_decoder import Gemma3Decoder

    return Gemma3Decoder(config, max_model_len, dtype, ranks)


GEMMA3 = Architecture(read_config=_read_config, build=_build)
