"""All settings of an engine. Nothing is read, checked or defaulted anywhere else."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, in which arithmetic, on which device."""

    model: str = field(metadata={"help": "folder of a Hugging Face checkpoint, or its hub ID"})
    served_model_name: str = ""
    """Name that clients ask for; empty is the last part of `model`."""
    load_format: str = "auto"
    """auto: read the safetensors files; dummy: random weights, from config.json alone."""
    dtype: str = "auto"
    """auto: that of the checkpoint on CUDA, float32 on CPU; or float32, bfloat16."""
    device: str = "auto"
    """auto: cuda if there is one, else cpu; or cpu, cuda, cuda:N."""
    max_model_len: int | None = None
    """The most tokens of prompt and output together; None is the checkpoint's."""
    seed: int = 0
    """Seed of dummy weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """The paged KV cache."""

    block_size: int = 16
    """Tokens of one block: 16, 32, 64, 128 or 256."""
    num_blocks: int | None = None
    """Blocks of the pool; None sizes it from `gpu_memory_utilization` (CUDA) or memory (CPU)."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory for weights, activations and cache together."""
    cpu_cache_bytes: int = 1 << 30
    """Size of the pool on the CPU when `num_blocks` is not given."""
    enable_prefix_caching: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """How much one step may do."""

    max_num_seqs: int = 256
    """The most sequences that run at once."""
    max_num_batched_tokens: int = 8192
    """The most tokens of one step."""
