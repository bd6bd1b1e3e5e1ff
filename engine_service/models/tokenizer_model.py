"""Tokenizer files that a router cannot use, since only tokenizer.json describes every step."""

import os
import shlex
from pathlib import Path

from engine_service.errors import StartupError
from engine_service.models.plain_file import exists, open_plain_file

FILE_NAME = "tokenizer.model"
_TEKKEN = "tekken.json"
_ADD = "add the tokenizer.json that the model's authors provide"
_USABLE = ("tokenizer.json", "vocab.json")
_SENTENCEPIECE = b"\n"
"""What a file of SentencePiece begins with: the first field of its message is a piece."""
_CONVERT = (
    "pip install transformers sentencepiece protobuf && python -c "
    '"import sys; from transformers import AutoTokenizer as T; f = sys.argv[1]; '
    'T.from_pretrained(f).save_pretrained(f)"'
)


def refuse_unconverted(folder: Path) -> None:
    """Refuses a folder whose tokenizer must be converted first; one without any is fine.

    Raises:
        StartupError: It is such a folder; the message has the command that converts it.
    """
    if any(exists(folder / name) for name in _USABLE):
        return
    if exists(folder / FILE_NAME):
        raise StartupError(f"{folder} has {FILE_NAME} but no tokenizer.json; {_advice(folder)}")
    if exists(folder / _TEKKEN):
        raise StartupError(f"{folder} has {_TEKKEN} but no tokenizer.json; {_ADD}")


def _advice(folder: Path) -> str:
    if _first_byte(folder / FILE_NAME) != _SENTENCEPIECE:
        # Those of tiktoken do not even name their special tokens.
        return _ADD
    if not exists(folder / "tokenizer_config.json"):
        # Without it, transformers would convert the file, and leave out the first token of texts.
        return f"{_ADD}, or its tokenizer_config.json, with which one can be made"
    return f"make one: {_CONVERT} {shlex.quote(str(folder))}"


def _first_byte(path: Path) -> bytes:
    descriptor = open_plain_file(path)
    try:
        return os.read(descriptor, 1)
    finally:
        os.close(descriptor)
