"""Tokens to text as they come, without ever splitting a character.

The pieces of a request, joined, are what decoding all of its tokens at once gives: a character is
held back until its last byte is there, and what stays incomplete becomes U+FFFD at the end. Behind
a prompt of text or tokens they are what decoding both adds to decoding the prompt, as in vLLM and
TGI: an answer that begins with a word then begins with its space. A chat's answer is a text of its
own.
"""

import codecs
import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from router.text.pieces import Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_HELD_BACK = 16
"""Tokens after which text that still looks incomplete is taken for broken."""

_MAX_RUN = 64
"""Byte tokens in a row after which characters are given out as they come."""

_MAX_PROMPT_TAIL = 64
"""Tokens of a prompt among which one with text is looked for."""


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


class _Run(enum.Enum):
    """What is known of the byte tokens that came last."""

    WHOLE = enum.auto()
    """All of them are held back, and may be text."""
    GIVEN_OUT = enum.auto()
    """They are so many that their characters are given out as they come."""
    BROKEN = enum.auto()
    """They are no text: each is given out as U+FFFD."""


class StreamDetokenizer:
    """For all other vocabularies.

    New tokens are decoded behind a short context of tokens whose text was given out, since a
    decoder may treat the beginning of a text otherwise: that of Llama 2 drops a space there.

    With byte fallback, a run of byte tokens becomes text if all of it is UTF-8, and U+FFFD for each
    byte if not. So a run is held back until a token of another kind ends it, or until it can be no
    UTF-8 any more, or until it is longer than `_MAX_RUN`. Only a run that breaks after that differs
    from decoding all at once: its characters that were given out stay.
    """

    def __init__(
        self, backend: "Tokenizer", pieces: Pieces | None = None, prompt: Sequence[int] = ()
    ) -> None:
        """Starts a request.

        Args:
            backend: The model's tokenizer.
            pieces: Those of the tokenizer; None finds them out anew.
            prompt: The tokens that the text goes on from; none for a text of its own.
        """
        self._backend = backend
        self._pieces = pieces = Pieces(backend) if pieces is None else pieces
        self._context: list[int] = []
        self._context_text = ""
        self._held_back: list[int] = []
        self._run = _Run.WHOLE
        for token_id in reversed(prompt[-_MAX_PROMPT_TAIL:]):
            piece = pieces[token_id]
            if piece is not None and piece.byte is None and piece.text:
                self._context, self._context_text = [token_id], piece.text
                break

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that the next tokens complete."""
        pieces, held_back = self._pieces, self._held_back
        held_back += [token_id for token_id in token_ids if pieces[token_id] is not None]
        if not pieces.has_byte_fallback:
            return self._push_text()
        start = len(held_back)
        run = bytearray()
        while start and (byte := self._byte(held_back[start - 1])) is not None:
            start -= 1
            run.append(byte)
        run.reverse()
        if start:
            self._run = _Run.WHOLE
        return self._take(start) + self._push_run(bytes(run))

    def flush(self) -> str:
        """Returns what is left when no more tokens come."""
        text = self._take(len(self._held_back))
        self._context, self._context_text, self._run = [], "", _Run.WHOLE
        return text

    def _byte(self, token_id: int) -> int | None:
        piece = self._pieces[token_id]
        return None if piece is None else piece.byte

    def _push_run(self, run: bytes) -> str:
        """Gives out what is certain of the byte tokens at the end, which are all held back."""
        if not run:
            return ""
        if self._run is _Run.BROKEN:
            return self._take(len(run), context=self._context)
        try:
            _, num_complete = codecs.utf_8_decode(run, "strict", False)
        except UnicodeDecodeError as error:
            # No run that begins with these bytes is text, whatever follows them.
            self._run = _Run.BROKEN
            return self._take(len(run), context=self._held_back[error.start : error.start + 4])
        if len(run) > _MAX_RUN:
            self._run = _Run.GIVEN_OUT
        if self._run is _Run.GIVEN_OUT:
            # Not these bytes: what follows could make them broken. Any word does as well.
            return self._take(num_complete, context=self._context or self._pieces.a_word)
        return ""

    def _push_text(self) -> str:
        """Gives out all, unless it ends in what may be the beginning of a character."""
        if len(self._held_back) < _MAX_HELD_BACK:
            whole = self._decode(self._context + self._held_back)
            if whole.endswith("\N{REPLACEMENT CHARACTER}"):
                return ""
        return self._take(len(self._held_back))

    def _take(self, count: int, context: list[int] | None = None) -> str:
        """Gives out the first tokens that are held back.

        Args:
            count: How many.
            context: What tokens to come are decoded behind; None finds it among these.
        """
        taken = self._held_back[:count]
        if not taken:
            return ""
        del self._held_back[:count]
        whole = self._decode(self._context + taken)
        text = whole[len(self._context_text) :]
        if context is None:
            self._renew_context(taken)
        else:
            self._context, self._context_text = context, self._decode(context)
        return text

    def _renew_context(self, taken: list[int]) -> None:
        """Finds the shortest context with a text of its own that ends in the last token taken."""
        pieces = self._pieces
        last = pieces[taken[-1]]
        if last is not None and last.text:
            self._context, self._context_text = taken[-1:], last.text
            return
        is_closed = bool(self._context) and self._byte(self._context[-1]) is None
        if is_closed and all(
            (piece := pieces[token_id]) is None or piece.is_empty for token_id in taken
        ):
            return
        window = self._context + taken
        for size in range(2, _MAX_HELD_BACK):
            self._context = window[-size:]
            self._context_text = self._decode(self._context)
            if self._context_text:
                return

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=True)


def start(
    backend: "Tokenizer",
    token_bytes: Mapping[int, bytes] | None,
    *,
    pieces: Pieces | None = None,
    prompt: Sequence[int] = (),
) -> Detokenizer:
    """Returns the detokenizer of a new request.

    Args:
        backend: The model's tokenizer.
        token_bytes: The bytes of each of its tokens, or None if it is not byte-level.
        pieces: Its pieces if it is not byte-level; None finds them out anew.
        prompt: The tokens that the text goes on from, with the space that its first word then has;
            none for a text of its own.
    """
    if token_bytes is None:
        return StreamDetokenizer(backend, pieces, prompt)
    return ByteLevelDetokenizer(token_bytes)
