"""Keeps what a client says in a chat from producing special tokens, such as one that ends a turn.

Before a template renders the chat, a marker is put before each place where a special token begins
in its contents, tools, tool calls and variables. In the rendered text, the special tokens without a
marker are the template's own. The text between them is tokenized as if there were no special
tokens, and without the markers.
"""

import re
from array import array
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.text.added_tokens import added_tokens, twin
from router.text.chat_texts import chat_texts, map_texts
from router.text.text_pieces import TextPieces
from router.text.text_start import behind_start
from router.text.token_budget import TokenBudget
from router.text.token_pattern import TokenPattern
from router.types.prompts import ChatPrompt

_FIRST_MARKER, _LAST_MARKER = 0xE000, 0xF8FF
"""Private-use characters: neither letters nor white space, and unchanged by templates."""
_STRIDE = 1 << 16
"""Characters per search: the search holds the interpreter lock, so other threads wait."""
_ESCAPE = re.compile(r"\\u[ef][0-9a-f]{3}")


class SpecialTokens:
    """The special tokens of a tokenizer. Its methods may be called from several threads."""

    def __init__(self, backend: Tokenizer, cutting: Sequence[str], chat_template: str = "") -> None:
        """Learns a tokenizer's special tokens.

        Args:
            backend: The tokenizer; it has no post-processor.
            cutting: Those of its special tokens that cut every text in two.
            chat_template: A text that may not contain the marker.
        """
        tokens = added_tokens(backend)
        special = [token for token in tokens if token.special]
        self._ids = {token.content: backend.token_to_id(token.content) for token in tokens}
        self._pattern = TokenPattern([token.content for token in special])
        self._cutting = TokenPattern(cutting)
        self._template_markers = _markers_in([chat_template, *self._ids])
        plain = twin(backend)
        plain.encode_special_tokens = True
        self._plain = self._plain_behind = TextPieces(plain)
        if (pre_tokenizer := behind_start(backend.pre_tokenizer)) is not None:
            behind = twin(backend)
            behind.encode_special_tokens = True
            behind.pre_tokenizer = pre_tokenizer
            self._plain_behind = TextPieces(behind)
        # The token for unknown characters may be special, and is not a forgery.
        unknown = set(plain.encode("\U0010fffd", add_special_tokens=False).ids)
        self._forged = {self._ids[token.content] for token in special} - unknown
        # The tokenizer's own search handles conditions and normalization.
        self._finder = None if len(cutting) == len(special) else _Finder(backend, tokens)
        self._content_finders: list[_Finder] = []
        if backend.normalizer is not None and (
            any(token.normalized for token in special) or self._is_vocabulary(special)
        ):
            literal = [AddedToken(t.content, normalized=True, special=True) for t in special]
            self._content_finders = [_Finder(backend, tokens), _Finder(backend, literal)]

    def protect(self, chat: ChatPrompt) -> tuple[ChatPrompt, str]:
        """Marks the special tokens in the texts of a chat; costs little where there are none.

        Returns:
            The chat for the template, and the marker: "" if it is the given one unchanged.

        Raises:
            InvalidRequest: The chat contains every character that could be the marker.
        """
        texts = list(chat_texts(chat))
        if not any(self._is_in(text) for text in texts):
            return chat, ""
        used = self._template_markers | _markers_in(texts)
        codes = range(_FIRST_MARKER, _LAST_MARKER + 1)
        marker = next((chr(code) for code in codes if chr(code) not in used), None)
        if marker is None:
            raise InvalidRequest(
                "chat.messages contain a special token and all characters from U+E000 to U+F8FF; "
                "remove one of these",
                {"field": "chat.messages"},
                reason=Reason.BAD_CHAT,
            )
        return map_texts(chat, lambda text: self._marked(text, marker)), marker

    def encode(self, text: str, marker: str, budget: TokenBudget) -> "array[int]":
        """Returns the token IDs of a rendered text with marked contents, typecode "i".

        Raises:
            InvalidRequest: There are more tokens than the budget allows.
            Abandoned: The budget was cancelled.
        """
        token_ids = array("i")
        plain = self._plain
        for segment, token_id in self._segments(text, marker):
            if segment:
                token_ids.extend(self._encode_plain(segment, plain, budget))
            plain = self._plain_behind
            if token_id is not None:
                token_ids.append(token_id)
            budget.check(len(token_ids))
        return token_ids

    def _is_vocabulary(self, special: Sequence[AddedToken]) -> bool:
        """Whether the model itself produces special tokens from their texts."""
        texts = [self._plain.encode(token.content) for token in special]
        return any(not self._forged.isdisjoint(token_ids) for token_ids in texts)

    def _is_in(self, content: str) -> bool:
        return self._pattern.find(content) is not None or any(
            finder.spans(content) for finder in self._content_finders
        )

    def _marked(self, content: str, marker: str) -> str:
        is_start = bytearray(len(content))
        position = 0
        while span := self._pattern.find(content, position):
            is_start[span[0]] = 1
            position = span[0] + 1
        for finder in self._content_finders:
            masked = list(content)
            while spans := [span for span in finder.spans("".join(masked)) if span[0] < span[1]]:
                for start, end, _ in spans:
                    is_start[start:end] = b"\1" * (end - start)
                    masked[start:end] = marker * (end - start)
        position = 0
        parts: list[str] = []
        while (start := is_start.find(1, position)) >= 0:
            # Skip the character after the marker, so that the search moves on.
            parts += (content[position:start], marker, content[start])
            position = start + 1
        return "".join((*parts, content[position:]))

    def _segments(self, text: str, marker: str) -> Iterator[tuple[str, int | None]]:
        """Yields each text between the template's special tokens, with the token after it."""
        position = 0
        if self._finder is None:
            for start, end in self._cutting.spans(text, marker):
                token_id = self._ids[text[start:end]]
                yield text[position:start].replace(marker, ""), token_id
                position = end
        else:
            # Replace marker and next character by the marker: same length as the unmarked text.
            mask = re.compile(f"{marker}+([^{marker}]?)")
            masked = mask.sub(lambda found: marker if found[1] else "", text)
            text = text.replace(marker, "")
            for start, end, token in self._finder.spans(masked):
                yield text[position : max(position, start)], self._ids[token]
                position = max(position, end)
        yield text[position:].replace(marker, ""), None

    def _encode_plain(self, text: str, plain: TextPieces, budget: TokenBudget) -> "array[int]":
        token_ids = plain.encode(text, budget)
        if self._forged.isdisjoint(token_ids):
            return token_ids
        # The model knows them as words: split after their first characters, they are not matched.
        token_ids = array("i")
        position = 0
        while span := self._pattern.find(text, position):
            token_ids.extend(plain.encode(text[position : span[0] + 1], budget))
            position, plain = span[0] + 1, self._plain_behind
        token_ids.extend(plain.encode(text[position:], budget))
        return array("i", (token for token in token_ids if token not in self._forged))


class _Finder:
    """Finds special tokens under all their conditions, as the tokenizer itself does."""

    def __init__(self, backend: Tokenizer, tokens: Sequence[AddedToken]) -> None:
        unknown = "?" * (1 + max(len(token.content) for token in tokens))
        self._backend = Tokenizer(WordLevel({unknown: 0}, unk_token=unknown))
        self._backend.normalizer = backend.normalizer
        self._backend.add_tokens(list(tokens))
        self._texts = {
            token_id: token.content
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }

    def spans(self, text: str) -> list[tuple[int, int, str]]:
        """Returns start, end and text of each special token in a text."""
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=False)
        return [
            (start, end, self._texts[token_id])
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token_id in self._texts
        ]


def _markers_in(texts: Sequence[str]) -> set[str]:
    """Returns the private-use characters in texts, including those written as JSON escapes."""
    found: set[str] = set()
    for text in texts:
        for start in range(0, len(text), _STRIDE):
            found.update(text[start : start + _STRIDE])
        found.update(chr(int(escape[2:], 16)) for escape in _ESCAPE.findall(text))
    return found
