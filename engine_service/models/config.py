"""A Hugging Face config.json, as transformers 4 and 5 write it. Needs no torch."""

from collections.abc import Mapping

from engine_service.models.config_fields import ConfigFields
from engine_service.models.model_config import ModelConfig
from engine_service.models.registry import ARCHITECTURES


def parse_config(values: Mapping[str, object], source: str = "config.json") -> ModelConfig:
    """Checks the content of a config.json and keeps what the model needs.

    Args:
        values: The JSON object.
        source: Name of the file, for messages.

    Returns:
        The configuration, of the architecture's own type.

    Raises:
        StartupError: A field is missing, invalid or requires something unsupported.
    """
    fields = ConfigFields(values, source)
    name = _architecture(fields)
    config: ModelConfig = ARCHITECTURES[name].read_config(name, fields)
    return config


def _architecture(fields: ConfigFields) -> str:
    names = fields.get("architectures")
    if isinstance(names, list) and len(names) == 1:
        name = names[0]
        if isinstance(name, str) and name in ARCHITECTURES:
            return name
    supported = ", ".join(ARCHITECTURES)
    raise fields.refuse("architectures", names, f"supported: {supported}")
