"""Matches stored tensors to a model by their headers alone. Needs no torch."""

import logging
from collections.abc import Container, Mapping, Sequence

from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.dtypes import READABLE, STORED
from engine_service.models.json_file import shown
from engine_service.models.tensor_file import StoredTensor

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "layers.": "model.layers.",
    "embed_tokens.": "model.embed_tokens.",
    "norm.": "model.norm.",
}
"""How names begin in checkpoints of larger models, and of models saved without their head."""
_OWN = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
"""How the names of a decoder begin. What has other names, such as images, is no part of it."""

_logger = logging.getLogger(__name__)


def choose_tensors(
    shapes: Mapping[str, Sequence[int]], checkpoint: Checkpoint
) -> dict[str, StoredTensor]:
    """Finds each tensor of a model; reads headers only, and allocates nothing.

    Args:
        shapes: Shapes of the model's whole tensors, by name; a tied model has no head.
        checkpoint: Where they are stored.

    Returns:
        The tensors by name, which may begin otherwise in the files. A tied model's one matrix may
        be stored as the embedding, the head, or both; if both, they must be equal. Tensors that
        are no part of a decoder are left out, and the log says so.

    Raises:
        StartupError: A file is incomplete, or a tensor is missing, unexpected, misshapen, or
            stored in an unsupported way; the message names it.
    """
    stored = _own_tensors(shapes, checkpoint)
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


def _own_tensors(names: Container[str], checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Returns the tensors of the decoder, by the names that they have here."""
    tensors: dict[str, StoredTensor] = {}
    others = []
    for name, tensor in checkpoint.stored_tensors().items():
        # Old checkpoints have these.
        if name.endswith("rotary_emb.inv_freq"):
            continue
        own_name = name if name in names else _own_name(name)
        if own_name not in names and not own_name.startswith(_OWN):
            others.append(name)
        elif own_name in tensors:
            raise StartupError(f"{tensor} is there twice: so is {tensors[own_name]}")
        else:
            tensors[own_name] = tensor
    if others:
        _logger.info(
            "weights unused tensors=%d first=%s detail=they are no part of a text decoder",
            len(others),
            shown(min(others))[1:-1],
        )
    return tensors


def _own_name(name: str) -> str:
    for prefix, own in _PREFIXES.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _check_stored(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise StartupError(
            f"{stored} has shape {list(stored.shape)}, but config.json requires {list(shape)}"
        )
    if STORED[stored.dtype].name is None:
        supported = ", ".join(dtype.stored_name for dtype in READABLE.values())
        raise StartupError(f"{stored} is stored as {stored.dtype}; supported: {supported}")
