"""Converts a stream of tokens to text without splitting a character.

All pieces of a request, joined, equal the result of decoding all of its tokens at once: a character
is held back until its last byte arrives, and an incomplete one becomes U+FFFD at the end. After a
prompt of text or tokens, the output is what decoding prompt and output adds to decoding the prompt,
as in vLLM and TGI: an answer that begins with a word begins with its space. The answer of a chat is
decoded separately from its prompt, unless it goes on within the last message.
"""

import codecs
import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from router.text.pieces import Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_HELD_BACK = 16
"""Tokens after which text that still looks incomplete is considered invalid."""

_MAX_RUN = 64
"""Byte tokens in a row after which characters are emitted as they are completed."""

_MAX_PROMPT_TAIL = 64
"""Tokens at the end of a prompt that are searched for one with text."""


class Detokenizer(Protocol):
    """Converts the tokens of one request to text; special tokens produce no text."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that the next tokens complete."""

    def flush(self) -> str:
        """Returns the remaining text when no more tokens come."""


class ByteLevelDetokenizer:
    """For byte-level vocabularies; constant time per token whatever the bytes are."""

    def __init__(self, token_bytes: Mapping[int, bytes]) -> None:
        """Starts a request.

        Args:
            token_bytes: The bytes of each token; b"" for those without text.
        """
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that the next tokens complete."""
        token_bytes = self._token_bytes
        return self._decoder.decode(b"".join([token_bytes[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        """Returns the remaining text when no more tokens come."""
        return self._decoder.decode(b"", final=True)


class _Run(enum.Enum):
    """State of the current run of byte tokens."""

    WHOLE = enum.auto()
    """All of them are held back, and may be text."""
    GIVEN_OUT = enum.auto()
    """The run is so long that its characters are emitted as they are completed."""
    BROKEN = enum.auto()
    """The run is not UTF-8: each byte is emitted as U+FFFD."""


class StreamDetokenizer:
    """For all other vocabularies.

    New tokens are decoded after a short context of tokens whose text has been emitted, since a
    decoder may treat the beginning of a text differently: Llama 2's drops a space there.

    With byte fallback, a run of byte tokens becomes text if all of it is UTF-8, and otherwise
    U+FFFD for each byte. So a run is held back until another kind of token ends it, until it cannot
    be UTF-8 any more, or until it is longer than `_MAX_RUN`. The result differs from decoding all
    at once only if a run becomes invalid after that: characters already emitted stay.
    """

    def __init__(
        self, backend: "Tokenizer", pieces: Pieces | None = None, prompt: Sequence[int] = ()
    ) -> None:
        """Starts a request.

        Args:
            backend: The model's tokenizer.
            pieces: The tokenizer's pieces; None computes them.
            prompt: The tokens before the text; none for a text of its own.
        """
        self._backend = backend
        self._pieces = pieces = Pieces(backend) if pieces is None else pieces
        self._context: list[int] = []
        self._context_text = ""
        self._held_back: list[int] = []
        self._run = _Run.WHOLE
        is_behind = False
        for token_id in reversed(prompt[-_MAX_PROMPT_TAIL:]):
            piece = pieces[token_id]
            if piece is None or piece.is_empty:
                continue
            if piece.byte is None and piece.text:
                self._context, self._context_text = [token_id], piece.text
                return
            is_behind = True
        if is_behind:
            # Bytes and single spaces: they cannot be the context.
            self._set_context_to_a_word()

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
        """Returns the remaining text when no more tokens come."""
        is_behind = bool(self._held_back or self._context)
        text = self._take(len(self._held_back))
        self._run = _Run.WHOLE
        if is_behind:
            # A tag may follow and more text behind it, which is not the beginning of the answer.
            self._set_context_to_a_word()
        return text

    def _byte(self, token_id: int) -> int | None:
        piece = self._pieces[token_id]
        return None if piece is None else piece.byte

    def _push_run(self, run: bytes) -> str:
        """Emits the certain part of the byte tokens at the end, all of which are held back."""
        if not run:
            return ""
        if self._run is _Run.BROKEN:
            return self._take(len(run), context=self._context)
        try:
            _, num_complete = codecs.utf_8_decode(run, "strict", False)
        except UnicodeDecodeError as error:
            # No run that begins with these bytes is UTF-8, whatever follows.
            self._run = _Run.BROKEN
            return self._take(len(run), context=self._held_back[error.start : error.start + 4])
        if len(run) > _MAX_RUN:
            self._run = _Run.GIVEN_OUT
        if self._run is _Run.GIVEN_OUT:
            # These bytes cannot be the context: later bytes could make them invalid. Any word can.
            return self._take(num_complete, context=self._context or self._pieces.a_word)
        return ""

    def _set_context_to_a_word(self) -> None:
        self._context, self._context_text = self._pieces.a_word, self._decode(self._pieces.a_word)

    def _push_text(self) -> str:
        """Emits all held-back tokens, unless they may end in the middle of a character."""
        if len(self._held_back) < _MAX_HELD_BACK:
            whole = self._decode(self._context + self._held_back)
            if whole.endswith("\N{REPLACEMENT CHARACTER}"):
                return ""
        return self._take(len(self._held_back))

    def _take(self, count: int, context: list[int] | None = None) -> str:
        """Emits the first held-back tokens.

        Args:
            count: How many.
            context: The context for decoding later tokens; None takes it from these tokens.
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
        """Finds the shortest context that has text of its own and ends in the last token taken."""
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
        pieces: Its pieces if it is not byte-level; None computes them.
        prompt: The tokens before the text, so that its first word keeps its space; none for a text
            of its own.
    """
    if token_bytes is None:
        return StreamDetokenizer(backend, pieces, prompt)
    return ByteLevelDetokenizer(token_bytes)
