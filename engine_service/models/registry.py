"""The architectures that the engine serves. Needs no torch."""

from typing import Any

from engine_service.models.architecture import Architecture
from engine_service.models.qwen3 import QWEN3

# Each has a configuration of a type of its own, which only its own `build` is given.
ARCHITECTURES: dict[str, Architecture[Any]] = {
    "Qwen3ForCausalLM": QWEN3,
}
"""By the name that config.json gives in `architectures`. A new model adds its line here."""
