"""The text and the bytes of single tokens, for lists of likely ones."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.text.containment import contained

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from router.text.pieces import Pieces


class TokenTexts(dict[int, tuple[str, bytes]]):
    """Text and bytes by token ID, both empty for unknown tokens; filled on demand.

    A special token has its name. A part of a character has its bytes, and U+FFFD in its text. With
    a vocabulary that is not byte-level, a token has the text that it adds after a word.
    """

    def __init__(
        self,
        backend: "Tokenizer",
        token_bytes: Mapping[int, bytes] | None,
        pieces: "Pieces | None",
    ) -> None:
        """Knows no token yet.

        Args:
            backend: The model's tokenizer.
            token_bytes: The bytes of each of its tokens, or None if it is not byte-level.
            pieces: Its pieces, or None if it is byte-level.
        """
        super().__init__()
        self._backend = backend
        self._token_bytes = token_bytes
        self._pieces = pieces

    def __missing__(self, token_id: int) -> tuple[str, bytes]:
        name = contained(self._backend.id_to_token, token_id)
        if name is None:
            # Not cached, so that the vocabulary bounds the cache.
            return "", b""
        raw = contained(self._raw, token_id) or name.encode()
        found = self[token_id] = raw.decode(errors="replace"), raw
        return found

    def _raw(self, token_id: int) -> bytes:
        """Returns the bytes of a token, none for a special one."""
        if self._token_bytes is not None:
            return self._token_bytes[token_id]
        assert self._pieces is not None, "a vocabulary that is not byte-level has pieces"
        piece = self._pieces[token_id]
        if piece is None:
            return b""
        if piece.byte is not None:
            return bytes([piece.byte])
        word = self._pieces.a_word
        text = self._backend.decode([*word, token_id], skip_special_tokens=True)
        return text[len(self._backend.decode(word, skip_special_tokens=True)) :].encode()
