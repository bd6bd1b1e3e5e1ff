"""The end-of-text tokens that the model folder names. Needs no tokenizer."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from engine_service.errors import StartupError
from engine_service.models.json_file import read_json, shown
from engine_service.models.plain_file import exists

MAX_TOKENIZER_FILE_BYTES = 64 << 20
_MAX_EOS_TOKENS = 1024

_logger = logging.getLogger(__name__)


def read_eos_token_ids(folder: Path, vocab_size: int) -> frozenset[int]:
    """Reads the IDs that end a text.

    They are the ones in generation_config.json, else config.json, plus the one that the tokenizer's
    configuration names, as in vLLM. For a chat model the latter is often the only one that ends a
    turn.

    Args:
        folder: The model folder.
        vocab_size: Each ID is below it.

    Raises:
        StartupError: A file cannot be read, or names something that is not a token.
    """
    token_ids = _configured_ids(folder, vocab_size)
    token = _tokenizer_token(folder)
    if token is None:
        return token_ids
    token_id = _find_id(folder, token)
    if token_id is None or token_id >= vocab_size:
        _logger.warning(
            "eos token unknown token=%s detail=the tokenizer's configuration names it, but no file "
            "gives it an ID in the vocabulary, so no text ends at it",
            shown(token),
        )
        return token_ids
    return token_ids | {token_id}


def _configured_ids(folder: Path, vocab_size: int) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = read_json(path).get("eos_token_id") if exists(path) else None
        if value is None:
            continue
        token_ids = value if isinstance(value, list) else [value]
        if len(token_ids) > _MAX_EOS_TOKENS or not all(
            _is_id(token_id) and token_id < vocab_size for token_id in token_ids
        ):
            raise StartupError(
                f"{path}: eos_token_id is {shown(value)}; must be a token ID from 0 to "
                f"{vocab_size - 1}, or a list of at most {_MAX_EOS_TOKENS} of them"
            )
        return frozenset(token_ids)
    return frozenset()


def _tokenizer_token(folder: Path) -> str | None:
    """Returns the text of the end token named in the tokenizer's configuration."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        value = _read(path).get("eos_token")
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            return token
        if value is not None:
            raise StartupError(f"{path}: eos_token is {shown(value)}; must be the text of a token")
    return None


def _find_id(folder: Path, token: str) -> int | None:
    for content, token_id in _known_tokens(folder, token):
        if content == token and _is_id(token_id):
            return token_id
    return None


def _known_tokens(folder: Path, token: str) -> Iterator[tuple[object, object]]:
    """Yields tokens and their IDs from the files: added tokens first, then the vocabulary."""
    tokenizer = _read(folder / "tokenizer.json")
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict):
            yield entry.get("content"), entry.get("id")
    decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for token_id, entry in decoder.items() if isinstance(decoder, dict) else []:
        if isinstance(entry, dict) and token_id.isdecimal() and len(token_id) < 10:
            yield entry.get("content"), int(token_id)
    model = tokenizer.get("model")
    for vocabulary in (
        _read(folder / "added_tokens.json"),
        model.get("vocab") if isinstance(model, dict) else None,
        _read(folder / "vocab.json"),
    ):
        if isinstance(vocabulary, dict):
            yield token, vocabulary.get(token)


def _read(path: Path) -> dict[str, object]:
    return read_json(path, MAX_TOKENIZER_FILE_BYTES) if exists(path) else {}


def _is_id(value: object) -> TypeGuard[int]:
    # Excludes `true`, which equals 1 in Python.
    return type(value) is int and value >= 0
