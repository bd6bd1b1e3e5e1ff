"""Tokenizes a text in pieces, so that a long text needs no more memory than a short one.

A piece ends where the tokenizer is certain to split: before a space that follows a letter or sign.
Without such a space, a window of the text is tokenized. Words whose end cannot be moved by text
after the window are kept, and the next window begins with the first word not kept. Both are right
if the tokenizer splits from left to right without looking back, which is known of the
configurations below. With any other tokenizer, a text is tokenized in one go.
"""

import unicodedata
from array import array
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import tokenizers

from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.text.added_tokens import added_tokens, has_condition
from router.text.token_budget import TokenBudget
from router.text.token_length import max_characters, part_settings

_WINDOW = 1 << 15
"""Characters tokenized at once."""
_MAX_WORD = 1 << 17
"""Characters of the longest word, such as a run of letters or spaces, which cannot be cut."""
_MARGIN = 16
"""Characters after a word that can move its end, and more: a contraction's three are the most."""
_MAX_TRIES = 64
_MAX_SEARCH = 1024
"""Characters at the end of a window that are searched for a space."""

# Each of these splits a text into words from left to right. None continues a word with a space
# after anything but white space. Past the end of a word, each reads at most a contraction or one
# run of white space.
_LETTERS_OF_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SIGNS_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATHS_AND_SPACES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = frozenset(
    {
        # GPT-2
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # Qwen 2 to 3
        _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _SIGNS_AND_SPACES,
        # Qwen 3.5
        _CONTRACTION
        + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        + r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # Llama 3
        _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _SIGNS_AND_SPACES,
        # GPT-4o and gpt-oss; Mistral's Tekken
        _LETTERS_OF_CASES.replace("%s", _CONTRACTION + "?") + r"|\p{N}{1,3}" + _PATHS_AND_SPACES,
        _LETTERS_OF_CASES.replace("%s", "") + r"|\p{N}" + _PATHS_AND_SPACES,
        # DeepSeek V3, after those below
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # The demo model
        r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    }
)
# These split off some parts, and leave the rest to one of the others.
PARTIAL_PATTERNS = frozenset({r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"})


class TextPieces:
    """Converts texts to tokens, adding none. May be called from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, window: int = _WINDOW) -> None:
        """Tokenizes up to `window` characters at once."""
        self._backend = backend
        self._window = window
        self._margin = _margin(backend)
        if self._margin is not None and 4 * self._margin > window:
            self._margin = None
        self._max_characters = None if self.is_cut else max_characters(backend)
        # No piece ends before a space that may be inside an added token.
        contents = [token.content for token in added_tokens(backend)]
        self._in_tokens = {
            before for content in contents for before, behind in pairwise(content) if behind == " "
        }

    @property
    def is_cut(self) -> bool:
        """Whether long texts are tokenized in pieces."""
        return self._margin is not None

    def encode(self, text: str, budget: TokenBudget = TokenBudget()) -> "array[int]":  # noqa: B008
        """Returns the token IDs of a text, typecode "i".

        Raises:
            InvalidRequest: There are more tokens than the budget allows, or a word is too long.
            Abandoned: The budget was cancelled.
        """
        # A text that cannot be cut is not started if it is certainly too long.
        budget.check(len(text) // self._max_characters if self._max_characters else 0)
        token_ids = array("i")
        position, size = 0, self._window
        while self._margin is not None and len(text) - position > size:
            end = self._last_space(text, position, position + size)
            if end is not None:
                token_ids.extend(self._encode(text[position:end]))
                position, size = end, self._window
            else:
                piece = text[position : position + size]
                (encoding,) = self._backend.encode_batch([piece], add_special_tokens=False)
                joint = self._joint(encoding, piece)
                if joint is not None:
                    num_kept, length = joint
                    token_ids.extend(encoding.ids[:num_kept])
                    position, size = position + length, self._window
                elif size < _MAX_WORD:
                    size *= 2
                else:
                    raise _too_long(position, size)
            budget.check(len(token_ids))
        token_ids.extend(self._encode(text[position:]))
        return token_ids

    def _encode(self, text: str) -> list[int]:
        # For a single text, `encode` holds the interpreter lock and records unused data.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def _last_space(self, text: str, start: int, stop: int) -> int | None:
        """Returns the position of the last space that follows anything but white space."""
        start = max(start, stop - _MAX_SEARCH)
        while (place := text.rfind(" ", start + 1, stop)) >= 0:
            before = text[place - 1]
            # Normalization may turn a non-ASCII character into one of a token.
            is_in_token = before in self._in_tokens or (self._in_tokens and not before.isascii())
            if not is_in_token and not before.isspace():
                return place
            stop = place
        return None

    def _joint(self, encoding: tokenizers.Encoding, piece: str) -> tuple[int, int] | None:
        """Returns how many tokens of a piece are certain, and the character where they end."""
        assert self._margin is not None
        stop = len(piece) - self._margin
        token = next(
            (
                found
                for place in range(stop, stop - _MAX_TRIES, -1)
                if (found := encoding.char_to_token(place)) is not None
            ),
            None,
        )
        last_word = None if token is None else encoding.token_to_word(token)
        if last_word is None:
            return None
        for word in range(last_word, max(0, last_word - _MAX_TRIES), -1):
            characters, tokens = encoding.word_to_chars(word), encoding.word_to_tokens(word)
            if characters is None or tokens is None:
                continue
            start = characters[0]
            # White space alone proves nothing: what follows may move the split.
            shown = piece[start : min(characters[1], stop)]
            if start and shown and not shown.isspace() and _begins_anew(shown[0]):
                return tokens[0], start
        return None


def _margin(backend: tokenizers.Tokenizer) -> int | None:
    """Returns how many characters after a word may move its end; None if unknown."""
    if not _commutes(part_settings(backend.normalizer)):
        return None
    if not _splits_all(part_settings(backend.pre_tokenizer)):
        return None
    tokens = added_tokens(backend)
    if backend.post_processor is not None or any(map(has_condition, tokens)):
        return None
    # Normalization turns at most four characters into one.
    return _MARGIN + 4 * max((len(token.content) for token in tokens), default=0)


def _commutes(normalizer: Mapping[str, Any]) -> bool:
    """Whether texts can be normalized in pieces, if cut where `_begins_anew` holds."""
    match normalizer:
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": []}:
            return True
    return not normalizer


def _begins_anew(character: str) -> bool:
    """Whether normalization neither composes nor reorders a character with those before it."""
    if character.isascii():
        return True
    is_inner_jamo = "\u1160" <= character <= "\u11ff"
    return unicodedata.category(character)[0] not in "CM" and not is_inner_jamo


def _splits_all(pre_tokenizer: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer is known and splits every text into words."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    # ByteLevel writes bytes as letters, spaces too, so it must be the last part.
    is_text = all(part.get("type") != "ByteLevel" for part in parts[:-1])
    return is_text and all(map(_is_known, parts)) and any(map(_makes_words, parts))


def _is_known(pre_tokenizer: Mapping[str, Any]) -> bool:
    match pre_tokenizer:
        case {
            "type": "Split",
            "pattern": {"Regex": str(pattern)},
            "behavior": "Isolated",
            "invert": False,
        }:
            return _escaped(pattern) in PATTERNS or pattern in PARTIAL_PATTERNS
        case {"type": "ByteLevel", "add_prefix_space": False} | {"type": "Digits"}:
            return True
    return False


def _makes_words(known: Mapping[str, Any]) -> bool:
    match known:
        case {"type": "Split", "pattern": {"Regex": pattern}}:
            return _escaped(pattern) in PATTERNS
        case {"type": "ByteLevel", "use_regex": True}:
            return True
    return False


def _escaped(pattern: str) -> str:
    """Returns a pattern with its line ends as escapes: DeepSeek's file has the characters."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


def _too_long(position: int, size: int) -> InvalidRequest:
    return InvalidRequest(
        f"the prompt has a run of {size} characters, from character {position} on, that the "
        f"tokenizer cannot split, such as letters or spaces only; the limit is {_MAX_WORD}, "
        "break it up",
        {"field": "prompt", "value": f"{size}", "bounds": f"0 to {_MAX_WORD}"},
        reason=Reason.PROMPT_TOO_LONG,
    )
