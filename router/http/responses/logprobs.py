"""The logprobs of the text of an answer, without those of its reasoning, calls and tags."""

from collections import deque
from typing import Any

from router.types.generation import ScoredTokens

Entry = dict[str, Any]

_LEAST = -9999.0
"""Stands for a token that cannot be, whose logprob is no number of JSON."""


class TextLogprobs:
    """Finds the tokens of each piece of text, which may come later than they do.

    A token that adds to two pieces is in the first of them.
    """

    def __init__(self) -> None:
        """Knows no token yet."""
        self._bytes = b""
        """Of the tokens that no piece has used up."""
        self._num_used = 0
        """Bytes before them."""
        self._tokens: deque[tuple[int, int, Entry]] = deque()
        """Where each of them begins and ends, counted from the first token of the answer."""
        self._follows_text = False

    def push(self, scored: ScoredTokens) -> None:
        """Adds tokens."""
        logprobs, num_top = scored.logprobs, scored.logprobs.num_top
        for index, token_id in enumerate(scored.token_ids):
            entry = _entry(scored, token_id, logprobs.logprobs[index])
            top = slice(index * num_top, (index + 1) * num_top)
            candidates = zip(logprobs.top_token_ids[top], logprobs.top_logprobs[top], strict=True)
            entry["top_logprobs"] = [_entry(scored, *candidate) for candidate in candidates]
            start = self._num_used + len(self._bytes)
            self._bytes += scored.texts[token_id][1]
            self._tokens.append((start, self._num_used + len(self._bytes), entry))

    def skip(self) -> None:
        """Notes that something else than text has come, perhaps of some of the tokens."""
        self._follows_text = False

    def clear(self) -> None:
        """Forgets all tokens, as none of them is of a text."""
        self._num_used += len(self._bytes)
        self._bytes = b""
        self._tokens.clear()

    def take(self, text: str) -> list[Entry]:
        """Returns the tokens of the next piece of text."""
        piece = text.encode()
        # A text goes on where it was. It begins after all else that has come, such as tags.
        find = self._bytes.find if self._follows_text else self._bytes.rfind
        place = find(piece)
        self._follows_text = True
        # Bytes that are no characters are not in the text as they are in the tokens.
        start, end = (0, len(self._bytes)) if place < 0 else (place, place + len(piece))
        self._bytes = self._bytes[end:]
        start, end = start + self._num_used, end + self._num_used
        self._num_used = end
        found = []
        while self._tokens and self._tokens[0][0] < end:
            _, token_end, entry = self._tokens.popleft()
            if token_end > start:
                found.append(entry)
        return found


def _entry(scored: ScoredTokens, token_id: int, logprob: float) -> Entry:
    text, raw = scored.texts[token_id]
    # In this order, so that NaN becomes the least, too.
    return {"token": text, "bytes": list(raw), "logprob": max(_LEAST, float(logprob))}
