"""Qwen3, dense (Qwen3 Technical Report, section 2): QK-norm, and no bias anywhere."""

from engine_service.models.architecture import Architecture, build_decoder
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, DecoderTraits, read_decoder_config

_TRAITS = DecoderTraits(
    has_qk_norm=True,
    has_default_shape=False,
    window_switch="use_sliding_window",
    has_full_layers_first=True,
)


def _read_config(architecture: str, fields: ConfigFields) -> DecoderConfig:
    fields.must_be("attention_bias", False)
    return read_decoder_config(architecture, fields, _TRAITS)


QWEN3 = Architecture(read_config=_read_config, build=build_decoder)
