"""The architectures that the engine serves. Needs no torch."""

from typing import Any

from engine_service.models.architecture import Architecture
from engine_service.models.gemma3 import GEMMA3
from engine_service.models.llama import LLAMA
from engine_service.models.mistral import MISTRAL
from engine_service.models.qwen2 import QWEN2
from engine_service.models.qwen3 import QWEN3

# Each has its own configuration type, which is passed only to its own `build`.
ARCHITECTURES: dict[str, Architecture[Any]] = {
    "Gemma3ForCausalLM": GEMMA3,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
}
"""By the name in `architectures` of config.json. To add a model, add a line here."""
