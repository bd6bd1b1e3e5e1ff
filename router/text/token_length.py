"""How many characters one token can stand for, which bounds the tokens of a text in advance."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import Decoder
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer

from router.text.added_tokens import added_tokens

_MOST_COMPOSED = 4
"""The most characters that NFC composes into one."""


def part_settings(part: Normalizer | PreTokenizer | Decoder | None) -> Mapping[str, Any]:
    """Returns the settings of a tokenizer's part, as in its file."""
    return {} if part is None else json.loads(part.__getstate__())


def max_characters(backend: Tokenizer) -> int | None:
    """Returns the most characters of a text that become one token; None if there is no bound."""
    tokens = added_tokens(backend)
    composed = _composed(part_settings(backend.normalizer))
    pre_tokenizer = part_settings(backend.pre_tokenizer)
    takes_spaces = any(token.lstrip or token.rstrip for token in tokens)
    if composed is None or takes_spaces or not _keeps_all(pre_tokenizer):
        return None
    vocabulary = backend.get_vocab()
    if not _knows_all(backend.model, vocabulary, "'ByteLevel'" in str(pre_tokenizer)):
        return None
    return composed * max(map(len, vocabulary))


def _composed(normalizer: Mapping[str, Any]) -> int | None:
    """Returns the most characters that become one; None if some may be dropped."""
    match normalizer:
        case {"type": "NFC"}:
            return _MOST_COMPOSED
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return 1 if len(old) <= len(new) else None
        # A space before a text that begins with one, as in what transformers converts.
        case {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}:
            return 1
        case {"type": "Sequence", "normalizers": [*parts]}:
            most = 1
            for composed in map(_composed, parts):
                if composed is None:
                    return None
                most *= composed
            return most
        case {"type": "Prepend"}:
            return 1
    return None if normalizer else 1


def _keeps_all(pre_tokenizer: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer only splits and drops nothing."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            return all(map(_keeps_all, parts))
        case {"type": "Split", "behavior": str(behavior)}:
            return behavior != "Removed"
    return pre_tokenizer.get("type") in (None, "ByteLevel", "Metaspace", "Digits")


def _knows_all(model: object, vocabulary: Mapping[str, int], is_byte_level: bool) -> bool:
    """Whether every character becomes a token, and each unknown one a token of its own."""
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if is_byte_level:
        return all(byte in vocabulary for byte in ByteLevel.alphabet())
    if model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return True
    return model.unk_token is not None and not model.fuse_unk
