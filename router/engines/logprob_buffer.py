"""Logprobs of consecutive tokens that wait for their reader."""

from array import array

from router.types import TokenLogprobs


class LogprobBuffer:
    """Logprobs in the order of their tokens; 4 bytes for each and 8 for each candidate.

    Attributes:
        num_top: Candidates at each position.
    """

    __slots__ = ("_logprobs", "_top_logprobs", "_top_token_ids", "num_top")

    def __init__(self, num_top: int) -> None:
        self.num_top = num_top
        self._logprobs = array("f")
        self._top_token_ids = array("I")
        self._top_logprobs = array("f")

    def __len__(self) -> int:
        return len(self._logprobs)

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return (4 + 8 * self.num_top) * len(self)

    def add(self, logprobs: TokenLogprobs) -> None:
        """Adds those of the next tokens."""
        self._logprobs.extend(logprobs.logprobs)
        self._top_token_ids.extend(logprobs.top_token_ids)
        self._top_logprobs.extend(logprobs.top_logprobs)

    def take(self, count: int) -> TokenLogprobs:
        """Removes those of the first `count` tokens and returns them."""
        end = count * self.num_top
        taken = TokenLogprobs(
            logprobs=self._logprobs[:count],
            top_token_ids=self._top_token_ids[:end],
            top_logprobs=self._top_logprobs[:end],
        )
        del self._logprobs[:count]
        del self._top_token_ids[:end]
        del self._top_logprobs[:end]
        return taken
