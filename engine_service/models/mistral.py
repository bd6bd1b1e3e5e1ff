"""Mistral 7B and Nemo (Jiang et al., 2023): Llama's structure with a sliding window."""

from engine_service.models.architecture import Architecture, build_decoder
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, DecoderTraits, read_decoder_config

_TRAITS = DecoderTraits(window_switch="sliding_window")


def _read_config(architecture: str, fields: ConfigFields) -> DecoderConfig:
    return read_decoder_config(architecture, fields, _TRAITS)


MISTRAL = Architecture(read_config=_read_config, build=build_decoder)
