"""Logprobs in the form of OpenAI's completions, and of the prompt in vLLM's."""

from collections.abc import Mapping, Sequence

from router.http.answers import quoted
from router.types.generation import ScoredTokens

_LEAST = -9999.0
"""JSON has no minus infinity; vLLM writes this for it."""
_CONTINUATIONS = bytes(range(0x80, 0xC0))
"""The bytes of UTF-8 that do not begin a character."""
_NAMES = ("tokens", "token_logprobs", "top_logprobs", "text_offset")

Texts = Mapping[int, tuple[str, bytes]]


class LogprobLists:
    """Parallel lists of JSON with one entry for each token.

    They are written as the tokens come: all of a long prompt at once would hold up others.

    Attributes:
        position: Where the next token begins, in characters of the choice's text.
    """

    def __init__(self, num_top: int, *, as_token_ids: bool, position: int = 0) -> None:
        """Holds no token yet.

        Args:
            num_top: The likeliest tokens at each position that are shown beside the token itself.
            as_token_ids: Whether tokens are shown by their IDs, as vLLM does it.
            position: As the attribute.
        """
        self.position = position
        self._num_top = num_top
        self._as_token_ids = as_token_ids
        self._lists: tuple[list[bytes], ...] = ([], [], [], [])

    def __len__(self) -> int:
        return len(self._lists[0])

    def add_first(self, token_id: int, text: str, raw: bytes, prompt: str) -> None:
        """Adds the first token of a prompt, which follows nothing and so has no logprob.

        Args:
            token_id: The token.
            text: Its text.
            raw: Its bytes.
            prompt: The prompt, as its text is sent.
        """
        self._add(self._quoted(token_id, text), b"null", b"null", self.position)
        # What the tokenizer adds before a text is not in the prompt as the client wrote it.
        if prompt[: len(raw)].encode().startswith(raw):
            self.position += _num_begun(raw)

    def add(self, scored: ScoredTokens, end: int) -> None:
        """Adds tokens.

        Args:
            scored: The tokens.
            end: Where their text ends at most; a token whose text is not sent has no characters.
        """
        texts, logprobs = scored.texts, scored.logprobs
        num_top = logprobs.num_top
        for index, (token_id, logprob) in enumerate(
            zip(scored.token_ids, logprobs.logprobs, strict=True)
        ):
            text, raw = texts[token_id]
            name, shown = self._quoted(token_id, text), _number(logprob)
            start = index * num_top
            stop = start + min(num_top, self._num_top)
            # Parts of characters may have the same text; the likeliest stands for all.
            top: dict[bytes, bytes] = {}
            for top_id, top_logprob in zip(
                logprobs.top_token_ids[start:stop], logprobs.top_logprobs[start:stop], strict=True
            ):
                top.setdefault(self._quoted(top_id, texts[top_id][0]), _number(top_logprob))
            top.setdefault(name, shown)
            entries = b",".join([b"%b:%b" % entry for entry in top.items()])
            is_inside = len(raw) > 0 and 0x80 <= raw[0] < 0xC0
            self._add(name, shown, b"{%b}" % entries, max(0, self.position - is_inside))
            self.position = min(self.position + _num_begun(raw), end)

    def to_json(self, before: "LogprobLists | None" = None) -> bytes:
        """Returns the lists, behind those of the prompt if it is echoed."""
        lists: Sequence[list[bytes]] = self._lists
        if before is not None:
            lists = [one + other for one, other in zip(before._lists, lists, strict=True)]
        named = zip(_NAMES, lists, strict=True)
        return b"{%b}" % b",".join(
            [b'"%b":[%b]' % (name.encode(), b",".join(entries)) for name, entries in named]
        )

    def _add(self, name: bytes, logprob: bytes, top: bytes, position: int) -> None:
        for one, entry in zip(self._lists, (name, logprob, top, b"%d" % position), strict=True):
            one.append(entry)

    def _quoted(self, token_id: int, text: str) -> bytes:
        # A model without a tokenizer has no texts.
        if self._as_token_ids or not text:
            return b'"token_id:%d"' % token_id
        return quoted(text)


def prompt_entries(scored: ScoredTokens, num_top: int) -> list[bytes]:
    """Returns logprobs of tokens of a prompt as JSON in vLLM's form, by token ID.

    Args:
        scored: The tokens.
        num_top: The likeliest tokens at each position that are shown. Only these have a rank.
    """
    logprobs, texts = scored.logprobs, scored.texts
    entries = []
    for index, (token_id, logprob) in enumerate(
        zip(scored.token_ids, logprobs.logprobs, strict=True)
    ):
        start = index * logprobs.num_top
        span = slice(start, start + min(num_top, logprobs.num_top))
        top = zip(logprobs.top_token_ids[span], logprobs.top_logprobs[span], strict=True)
        entry = {
            top_id: _entry(top_logprob, b"%d" % rank, texts[top_id][0])
            for rank, (top_id, top_logprob) in enumerate(top, 1)
        }
        entry.setdefault(token_id, _entry(logprob, b"null", texts[token_id][0]))
        entries.append(b"{%b}" % b",".join([b'"%d":%b' % one for one in entry.items()]))
    return entries


def _entry(logprob: float, rank: bytes, text: str) -> bytes:
    fields = (_number(logprob), rank, quoted(text))
    return b'{"logprob":%b,"rank":%b,"decoded_token":%b}' % fields


def _num_begun(raw: bytes) -> int:
    return len(raw.translate(None, _CONTINUATIONS))


def _number(logprob: float) -> bytes:
    return repr(max(_LEAST, logprob)).encode()
