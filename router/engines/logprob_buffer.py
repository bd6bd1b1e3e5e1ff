"""Logprobs of consecutive tokens that wait for their reader."""

from array import array

from router.types.engine_events import TokenLogprobs


class LogprobBuffer:
    """Logprobs in the order of their tokens; 4 bytes for each and 8 for each candidate.

    Attributes:
        num_top: Candidates at each position.
    """

    __slots__ = ("_logprobs", "_num_taken", "_top_logprobs", "_top_token_ids", "num_top")

    def __init__(self, num_top: int) -> None:
        self.num_top = num_top
        self._num_taken = 0
        self._logprobs = array("f")
        self._top_token_ids = array("I")
        self._top_logprobs = array("f")

    def __len__(self) -> int:
        return len(self._logprobs) - self._num_taken

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return (4 + 8 * self.num_top) * len(self._logprobs)

    def add(self, logprobs: TokenLogprobs) -> None:
        """Adds those of the next tokens."""
        self._logprobs.extend(logprobs.logprobs)
        self._top_token_ids.extend(logprobs.top_token_ids)
        self._top_logprobs.extend(logprobs.top_logprobs)

    def take(self, count: int) -> TokenLogprobs:
        """Removes those of the first `count` tokens and returns them."""
        first, num_top = self._num_taken, self.num_top
        end = first + count
        taken = TokenLogprobs(
            logprobs=self._logprobs[first:end],
            top_token_ids=self._top_token_ids[first * num_top : end * num_top],
            top_logprobs=self._top_logprobs[first * num_top : end * num_top],
        )
        self._num_taken = end
        # Moving the rest to the front each time would take a time that grows with its square.
        if 2 * end >= len(self._logprobs):
            self._forget_taken()
        return taken

    def _forget_taken(self) -> None:
        end = self._num_taken
        del self._logprobs[:end]
        del self._top_token_ids[: end * self.num_top]
        del self._top_logprobs[: end * self.num_top]
        self._num_taken = 0
