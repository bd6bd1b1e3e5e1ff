"""Small tokenizers with byte fallback, and decoders as those of well-known models."""

import json

import tokenizers
from tokenizers import decoders, models

TEXTS = ["▁", "▁world", "▁again", "a", "b▁", "", "\N{REPLACEMENT CHARACTER}", "<unk>"]
"""Tokens of text, with IDs from 256 on; some are all space, one is nothing."""
WORD, AGAIN, LETTER, EMPTY = 257, 258, 259, 261
SPECIAL, ADDED, UNKNOWN = 264, 265, 266
"""A special token, one that is added and not special, and an ID that there is not."""

_LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
DECODERS = {
    "gemma": _LLAMA,
    "llama": [*_LLAMA, decoders.Strip(" ", 1, 0)],
    "metaspace": [decoders.ByteFallback(), decoders.Metaspace()],
}


def make(name: str) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose IDs below 256 are the bytes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {text: 256 + number for number, text in enumerate(TEXTS)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(DECODERS[name])
    backend.add_special_tokens(["<s>"])
    backend.add_tokens([tokenizers.AddedToken("<tool>", special=False)])
    return backend


def files(name: str) -> dict[str, bytes]:
    """Returns the files of a checkpoint by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }
    return {
        "tokenizer.json": make(name).to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
