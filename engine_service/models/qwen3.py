"""Qwen3, dense (Qwen3 Technical Report, section 2): QK-norm, and no bias anywhere."""

from engine_service.models.architecture import Architecture, build_decoder
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, read_decoder_config


def _read_config(architecture: str, fields: ConfigFields) -> DecoderConfig:
    fields.must_be("attention_bias", False)
    return read_decoder_config(architecture, fields, has_qk_norm=True)


QWEN3 = Architecture(read_config=_read_config, build=build_decoder)
