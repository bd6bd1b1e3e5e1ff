"""What the engine must know of a model, whatever its architecture. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The facts that sizes and limits come from. Architectures add what their layers need."""

    architecture: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    initializer_range: float
    """Standard deviation of random weights."""
    dtype: str
    """Name of the dtype that the checkpoint says it is stored in."""
