"""Finds the texts that end a request, in the tokens that it generates."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

TokenBytes = Callable[[int], bytes]
"""Returns the bytes of a token's text."""


class StopMatch(NamedTuple):
    """The first text that was found."""

    text: str
    num_tokens: int
    """Tokens of those just given up to the end of the text."""


class StopTexts:
    """The texts that end one request.

    Args:
        texts: Not empty, and none of them is.
        token_bytes: Those of a token that the client does not see are empty.
        min_tokens: Texts that end before this many tokens do not count.
    """

    def __init__(self, texts: Iterable[str], token_bytes: TokenBytes, min_tokens: int) -> None:
        self._texts = {text.encode(): text for text in texts}
        self._kept = max(map(len, self._texts)) - 1
        self._token_bytes = token_bytes
        self._num_exempt = max(0, min_tokens - 1)
        self._tail = b""

    def find(self, token_ids: Iterable[int]) -> StopMatch | None:
        """Takes in the next tokens; returns the text that their text completes, if any."""
        for count, token_id in enumerate(token_ids, start=1):
            content = self._tail + self._token_bytes(token_id)
            if self._num_exempt:
                self._num_exempt -= 1
            else:
                for wanted, text in self._texts.items():
                    if wanted in content:
                        return StopMatch(text, count)
            self._tail = content[-self._kept :] if self._kept else b""
        return None
