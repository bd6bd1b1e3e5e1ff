"""The interface of an architecture that the engine can serve. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from engine_service.models.config_fields import ConfigFields
from engine_service.models.decoder_config import DecoderConfig
from engine_service.models.model_config import ModelConfig

if TYPE_CHECKING:
    import torch

    from engine_service.layers.ranks import Ranks
    from engine_service.models.causal_lm import CausalLM

ConfigT = TypeVar("ConfigT", bound=ModelConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture(Generic[ConfigT]):
    """Reads an architecture's config.json and builds its model from it."""

    read_config: Callable[[str, ConfigFields], ConfigT]
    """Takes the architecture's name and config.json's fields. It checks each field that it knows,
    and raises StartupError for what the model cannot compute."""
    build: "Callable[[ConfigT, int, torch.dtype, Ranks], CausalLM]"
    """Takes the configuration, the longest sequence in tokens, the dtype to compute in, and the
    ranks that share the model. This rank's part of it is built on the current default device, its
    weights not yet set.

    The server process also reads configurations and has no torch, so this function must import
    its modules only when it is called."""


def build_decoder(
    config: DecoderConfig, max_model_len: int, dtype: "torch.dtype", ranks: "Ranks"
) -> "CausalLM":
    """Builds a dense decoder, for architectures of that kind."""
    from engine_service.models.decoder import Decoder

    return Decoder(config, max_model_len, dtype, ranks)
