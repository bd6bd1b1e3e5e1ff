"""Tokens to text as they come, without ever splitting a character.

The pieces of a request, joined, are what decoding all of its tokens at once gives: a character is
held back until its last byte is there, and what stays incomplete becomes U+FFFD at the end.
"""

import codecs
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_HELD_BACK = 16
"""Tokens after which text that still looks incomplete is taken for broken."""


class Detokenizer(Protocol):
    """Turns the tokens of one request into text; special tokens yield none."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that the next tokens complete."""

    def flush(self) -> str:
        """Returns what is left when no more tokens come."""


class ByteLevelDetokenizer:
    """For byte-level vocabularies, in constant time per token whatever the bytes are."""

    def __init__(self, token_bytes: Mapping[int, bytes]) -> None:
        """Starts a request.

        Args:
            token_bytes: The bytes of each token, b"" for those that yield no text.
        """
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that the next tokens complete."""
        token_bytes = self._token_bytes
        return self._decoder.decode(b"".join([token_bytes[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        """Returns what is left when no more tokens come."""
        return self._decoder.decode(b"", final=True)


class StreamDetokenizer:
    """For all other vocabularies.

    A DecodeStream decodes all that it holds back with each token, and it holds back whatever ends
    in U+FFFD. Tokens that form no text would cost more and more, hence the bound.
    """

    def __init__(self, backend: "Tokenizer") -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held_back: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that the next tokens complete."""
        return "".join([self._step(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """Returns what is left when no more tokens come."""
        text = self._backend.decode(self._held_back, skip_special_tokens=True)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held_back = []
        return text

    def _step(self, token_id: int) -> str:
        self._held_back.append(token_id)
        try:
            text = self._stream.step(self._backend, token_id)
        # Its only error, without a class of its own: bytes that came later made broken what was
        # already given out. What is held back starts afresh.
        except Exception:
            return self.flush()
        if text is not None:
            self._held_back = []
            return text
        return self.flush() if len(self._held_back) >= _MAX_HELD_BACK else ""


def start(backend: "Tokenizer", token_bytes: Mapping[int, bytes] | None) -> Detokenizer:
    """Returns the detokenizer of a new request.

    Args:
        backend: The model's tokenizer.
        token_bytes: The bytes of each of its tokens, or None if it is not byte-level.
    """
    if token_bytes is None:
        return StreamDetokenizer(backend)
    return ByteLevelDetokenizer(token_bytes)
