"""Logprobs in the form of OpenAI's completions, and of the prompt in vLLM's."""

from collections.abc import Mapping
from typing import Any

from router.types import ScoredTokens

_LEAST = -9999.0
"""JSON has no minus infinity; vLLM writes this for it."""
_CONTINUATIONS = bytes(range(0x80, 0xC0))
"""The bytes of UTF-8 that do not begin a character."""

Texts = Mapping[int, tuple[str, bytes]]


class LogprobLists:
    """Parallel lists with one entry for each token.

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
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._tops: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add_first(self, token_id: int, text: str, prompt: str) -> None:
        """Adds the first token of a prompt, which follows nothing and so has no logprob."""
        self._tokens.append(_name(token_id, text, as_token_id=self._as_token_ids))
        self._logprobs.append(None)
        self._tops.append(None)
        self._offsets.append(self.position)
        # What the tokenizer adds before a text is not in the prompt as the client wrote it.
        if prompt.startswith(text):
            self.position += len(text)

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
            name = self._name(token_id, texts)
            start = index * num_top
            stop = start + min(num_top, self._num_top)
            top: dict[str, float] = {}
            for top_id, top_logprob in zip(
                logprobs.top_token_ids[start:stop], logprobs.top_logprobs[start:stop], strict=True
            ):
                # Parts of characters may have the same text; the likeliest stands for all.
                top.setdefault(self._name(top_id, texts), max(_LEAST, top_logprob))
            logprob = max(_LEAST, logprob)
            top.setdefault(name, logprob)
            self._tokens.append(name)
            self._logprobs.append(logprob)
            self._tops.append(top)
            self._place(texts[token_id][1], end)

    def content(self, before: "LogprobLists | None" = None) -> dict[str, Any]:
        """Returns the lists, behind those of the prompt if it is echoed."""
        lists = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._tops,
            "text_offset": self._offsets,
        }
        if before is None:
            return lists
        return {name: before_list + lists[name] for name, before_list in before.content().items()}

    def _name(self, token_id: int, texts: Texts) -> str:
        return _name(token_id, texts[token_id][0], as_token_id=self._as_token_ids)

    def _place(self, raw: bytes, end: int) -> None:
        num_begun = len(raw.translate(None, _CONTINUATIONS))
        is_inside = len(raw) > 0 and 0x80 <= raw[0] < 0xC0
        self._offsets.append(max(0, min(self.position - is_inside, end)))
        self.position = min(self.position + num_begun, end)


def prompt_entries(scored: ScoredTokens, num_top: int) -> list[dict[str, Any]]:
    """Returns logprobs of tokens of a prompt in vLLM's form, by token ID.

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
            str(top_id): _entry(top_logprob, rank, texts[top_id][0])
            for rank, (top_id, top_logprob) in enumerate(top, 1)
        }
        entry.setdefault(str(token_id), _entry(logprob, None, texts[token_id][0]))
        entries.append(entry)
    return entries


def _entry(logprob: float, rank: int | None, text: str) -> dict[str, Any]:
    return {"logprob": max(_LEAST, logprob), "rank": rank, "decoded_token": text}


def _name(token_id: int, text: str, *, as_token_id: bool) -> str:
    # A model without a tokenizer has no texts.
    return f"token_id:{token_id}" if as_token_id or not text else text
