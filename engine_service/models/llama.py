"""Llama 1 to 3.3 (Touvron et al., 2023; The Llama 3 Herd of Models, section 3.2).

Others have its structure and its name: Yi, DeepSeek LLM, TinyLlama, SmolLM2.
"""

from engine_service.models.architecture import Architecture, build_decoder
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, DecoderTraits, read_decoder_config


def _read_config(architecture: str, fields: ConfigFields) -> DecoderConfig:
    fields.must_be("attention_bias", False)
    fields.must_be("mlp_bias", False)
    return read_decoder_config(architecture, fields, DecoderTraits())


LLAMA = Architecture(read_config=_read_config, build=build_decoder)
