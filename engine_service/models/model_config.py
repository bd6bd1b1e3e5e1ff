"""What the engine must know about a model of any architecture. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The values that determine sizes and limits. Architectures add what their layers need."""

    architecture: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    initializer_range: float
    """Standard deviation of random weights."""
    dtype: str
    """Name of the dtype in which the checkpoint claims to be stored."""
