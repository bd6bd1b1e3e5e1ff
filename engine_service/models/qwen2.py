"""Qwen2 and Qwen2.5, dense (Qwen2 Technical Report, section 2): a bias in QKV only."""

from engine_service.models.architecture import Architecture, build_decoder
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, DecoderTraits, read_decoder_config

_TRAITS = DecoderTraits(
    has_qkv_bias=True, window_switch="use_sliding_window", has_full_layers_first=True
)


def _read_config(architecture: str, fields: ConfigFields) -> DecoderConfig:
    return read_decoder_config(architecture, fields, _TRAITS)


QWEN2 = Architecture(read_config=_read_config, build=build_decoder)
