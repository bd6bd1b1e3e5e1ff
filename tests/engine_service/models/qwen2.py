"""Qwen2, dense (Qwen2 Technical Report, section 2): all that adding an architecture takes.

This is the one file, as it would stand in `engine_service/models/`; the one line is
`"Qwen2ForCausalLM": QWEN2` in its `registry.py`, which the tests add for as long as they run.
"""

from engine_service.models.architecture import Architecture, build_decoder
from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig, read_decoder_config


def _read_config(architecture: str, fields: ConfigFields) -> DecoderConfig:
    return read_decoder_config(architecture, fields, has_qkv_bias=True, is_head_dim_given=False)


QWEN2 = Architecture(read_config=_read_config, build=build_decoder)
