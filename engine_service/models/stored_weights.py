"""Matches stored tensors to a model by their headers alone. Needs no torch."""

from collections.abc import Mapping, Sequence

from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.dtypes import READABLE, STORED
from engine_service.models.tensor_file import StoredTensor

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def choose_tensors(
    shapes: Mapping[str, Sequence[int]], checkpoint: Checkpoint
) -> dict[str, StoredTensor]:
    """Finds each tensor of a model; reads headers only, and allocates nothing.

    Args:
        shapes: Shapes of the model's whole tensors, by name; a tied model has no head.
        checkpoint: Where they are stored.

    Returns:
        The tensors by name. A tied model's one matrix may be stored as the embedding, the head,
        or both; if both, they must be equal.

    Raises:
        StartupError: A file is incomplete, or a tensor is missing, unexpected, misshapen, or
            stored in an unsupported way; the message names it.
    """
    stored = {
        name: tensor
        for name, tensor in checkpoint.stored_tensors().items()
        # Old checkpoints have these.
        if not name.endswith("rotary_emb.inv_freq")
    }
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    if HEAD not in wanted and HEAD in stored:
        wanted[HEAD] = wanted[EMBEDDING]
        if EMBEDDING not in stored:
            del wanted[EMBEDDING]
    for name, tensor in stored.items():
        if name not in wanted:
            raise StartupError(f"{tensor} is not part of the model that config.json describes")
        _check_stored(tensor, wanted[name])
    missing = wanted.keys() - stored.keys()
    if missing:
        name = min(missing)
        raise StartupError(
            f"{checkpoint.folder}: tensor {name} of shape {list(wanted[name])} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return stored


def _check_stored(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise StartupError(
            f"{stored} has shape {list(stored.shape)}, but config.json requires {list(shape)}"
        )
    if STORED[stored.dtype].name is None:
        supported = ", ".join(dtype.stored_name for dtype in READABLE.values())
        raise StartupError(f"{stored} is stored as {stored.dtype}; supported: {supported}")
