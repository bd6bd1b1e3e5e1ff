"""Which stored tensors make up a model, by their headers alone. Needs no torch."""

from collections.abc import Mapping, Sequence

from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.config import ModelConfig
from engine_service.models.tensor_file import StoredTensor

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
STORED_DTYPES = ("BF16", "F16", "F32")
"""Types that tensors are read in, by the format's names."""


def choose_tensors(
    shapes: Mapping[str, Sequence[int]], checkpoint: Checkpoint
) -> dict[str, StoredTensor]:
    """Finds each tensor of a model; reads headers only, and allocates nothing.

    Args:
        shapes: Of the model's tensors, by name; a tied model has no head.
        checkpoint: Where they are stored.

    Returns:
        The tensors by name. A tied model's one matrix may be stored as the embedding, as the head,
        or as both, which must then be equal.

    Raises:
        StartupError: A file is not whole, or a tensor is missing, unexpected, misshapen, or stored
            in an unsupported way; the message names it.
    """
    stored = {
        name: tensor
        for name, tensor in checkpoint.stored_tensors().items()
        # Which old checkpoints hold.
        if not name.endswith("rotary_emb.inv_freq")
    }
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    if HEAD not in wanted and HEAD in stored:
        wanted[HEAD] = wanted[EMBEDDING]
        if EMBEDDING not in stored:
            del wanted[EMBEDDING]
    for name, tensor in stored.items():
        if name not in wanted:
            raise StartupError(f"{tensor} is unexpected in this architecture")
        _check_stored(tensor, wanted[name])
    missing = wanted.keys() - stored.keys()
    if missing:
        name = min(missing)
        raise StartupError(
            f"{checkpoint.folder}: tensor {name} {list(wanted[name])} is missing"
            + (f", and {len(missing) - 1} more are" if len(missing) > 1 else "")
        )
    return stored


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a Qwen3's tensors, by their names in a checkpoint."""
    hidden, head = config.hidden_size, config.head_dim
    queries, keys = config.num_heads * head, config.num_kv_heads * head
    of_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (config.intermediate_size, hidden),
        "mlp.up_proj.weight": (config.intermediate_size, hidden),
        "mlp.down_proj.weight": (hidden, config.intermediate_size),
    }
    shapes = {
        f"model.layers.{index}.{name}": shape
        for index in range(config.num_layers)
        for name, shape in of_layer.items()
    }
    shapes[EMBEDDING] = (config.vocab_size, hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def _check_stored(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise StartupError(
            f"{stored} is {list(stored.shape)}, but config.json makes it {list(shape)}"
        )
    if stored.dtype not in STORED_DTYPES:
        raise StartupError(
            f"{stored} is stored as {stored.dtype}; supported are {', '.join(STORED_DTYPES)}"
        )
