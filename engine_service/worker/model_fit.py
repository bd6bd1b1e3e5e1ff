"""Whether a model fits on its GPUs, before anything is read or allocated."""

from dataclasses import dataclass

import torch

from engine_service.errors import StartupError
from engine_service.models.loading import build_model
from engine_service.models.model_config import ModelConfig

_MAX_RANKS = 64
_WEIGHTS_SHARE = 0.9
"""What weights should take at most of what a rank may use, for steps and a cache to fit, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory of one GPU in bytes."""

    name: str
    free: int
    total: int
    utilization: float
    """The share of `total` that the engine may use."""

    @property
    def usable(self) -> int:
        """What the engine may take now."""
        return min(self.free, int(self.total * self.utilization))


def weights_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Returns the bytes of all weights, whatever rank they are on."""
    # On torch's device "meta" a tensor has only a shape and a dtype.
    model = build_model(config, 1, dtype, torch.device("meta"))
    parameters = {id(slot.parameter): slot.parameter for slot in model.weight_slots()}
    return sum(each.numel() * each.element_size() for each in parameters.values())


def check_fit(
    config: ModelConfig, dtype: torch.dtype, num_ranks: int, memory: DeviceMemory
) -> None:
    """Refuses a model whose weights leave no room for anything else.

    Raises:
        StartupError: The message has the sizes in GiB and says what would fit.
    """
    whole = weights_bytes(config, dtype)
    part = whole // num_ranks
    if part <= memory.usable:
        return
    of_ranks = f" over {num_ranks} ranks" if num_ranks > 1 else ""
    name = str(dtype).removeprefix("torch.")
    raise StartupError(
        f"the model's weights take {gib(part)} in {name}{of_ranks}, too much for {memory.name}: of "
        f"{gib(memory.total)}, {gib(memory.free)} are free and gpu_memory_utilization "
        f"{memory.utilization:g} allows {gib(int(memory.total * memory.utilization))}; "
        + _advice(config, whole, num_ranks, memory)
    )


def gib(num_bytes: int) -> str:
    """Returns a size for people to read."""
    return f"{num_bytes / 2**30:.1f} GiB"


def _advice(config: ModelConfig, whole: int, num_ranks: int, memory: DeviceMemory) -> str:
    comfortable = _WEIGHTS_SHARE * memory.total * memory.utilization
    if whole // num_ranks <= comfortable:
        return "free memory of the GPU"
    for size in range(num_ranks + 1, _MAX_RANKS + 1):
        if whole // size <= comfortable and _is_divisible(config, size):
            return f"it fits on {size} such GPUs, with tensor_parallel_size {size}"
    return "take a smaller model or larger GPUs"


def _is_divisible(config: ModelConfig, num_ranks: int) -> bool:
    try:
        config.check_ranks(num_ranks)
    except StartupError:
        return False
    return True
