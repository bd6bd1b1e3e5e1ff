"""What streaming detokenization needs to know of each token, if not byte-level."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token that the decoder sees.

    Attributes:
        byte: The byte that it stands for, or None if it is text.
        text: Its text when decoded alone, that is, at the beginning of a text.
        is_empty: Whether its content is the empty string.
    """

    byte: int | None
    text: str
    is_empty: bool


class Pieces(dict[int, Piece | None]):
    """Pieces by token ID, None for special and unknown tokens; filled on demand.

    Attributes:
        has_byte_fallback: Whether a run of byte tokens is decoded as UTF-8, as in Llama 2, Mistral
            and Gemma.
        a_word: A token that has text of its own, if there is one.
    """

    def __init__(self, backend: "Tokenizer") -> None:
        super().__init__()
        self._backend = backend
        self._special_ids = {
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }
        first, second = (backend.token_to_id(name) for name in ("<0xC3>", "<0xA9>"))
        self.has_byte_fallback = (
            first is not None and second is not None and backend.decode([first, second]) == "é"
        )
        words = (
            [token_id]
            for token_id in range(backend.get_vocab_size())
            if (piece := self[token_id]) is not None and piece.byte is None and piece.text
        )
        self.a_word: list[int] = next(words, [])

    def __missing__(self, token_id: int) -> Piece | None:
        content = self._backend.id_to_token(token_id)
        if content is None:
            # Not cached: an engine can send any number of unknown IDs.
            return None
        piece = None
        if token_id not in self._special_ids:
            match = _BYTE.fullmatch(content) if self.has_byte_fallback else None
            piece = Piece(
                byte=int(match[1], 16) if match else None,
                text=self._backend.decode([token_id]),
                is_empty=not content,
            )
        self[token_id] = piece
        return piece
