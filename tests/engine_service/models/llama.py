"""Llama (Touvron et al., 2023), without the rotary scaling of later ones: a second small one."""

from engine_service.models.architecture import Architecture, build_decoder
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, read_decoder_config


def _read_config(architecture: str, fields: ConfigFields) -> DecoderConfig:
    fields.must_be("attention_bias", False)
    fields.must_be("mlp_bias", False)
    return read_decoder_config(architecture, fields, is_head_dim_given=False)


LLAMA = Architecture(read_config=_read_config, build=build_decoder)
