"""How much the clients with one key may ask for, and how much they have asked for."""

import math
import time
from dataclasses import dataclass

from router.access.bucket import Bucket, Clock
from router.access.keys_file import Key
from router.errors import RateLimited

_RETRY_SECONDS = 1.0
"""When to come back if too much is in progress: nobody knows when that ends."""


@dataclass(slots=True)
class Usage:
    """What one key has used; see `docs/metrics.md`."""

    num_requests: int = 0
    num_refused: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0


class Limits:
    """Counts requests and tokens of one key, and refuses what is too much.

    Belongs to the event loop: between a check and what follows from it nothing else runs.

    Attributes:
        num_in_progress: Requests under way.
        usage: What was used since the router started.
    """

    def __init__(self, key: Key, clock: Clock = time.monotonic) -> None:
        """Starts with full buckets.

        Args:
            key: Has the limits.
            clock: Returns seconds; tests set it.
        """
        self.num_in_progress = 0
        self.usage = Usage()
        self._clock = clock
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.set_key(key)

    def set_key(self, key: Key) -> None:
        """Takes in the limits that a new file has."""
        self._key = key
        self._requests = self._changed(self._requests, key.requests_per_minute)
        self._tokens = self._changed(self._tokens, key.tokens_per_minute)

    def _changed(self, bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, self._clock)
        bucket.set_rate(per_minute)
        return bucket

    def enter(self, num_requests: int) -> None:
        """Begins requests; `leave` must follow.

        Raises:
            RateLimited: They are too many at once or in this minute, or no tokens are left.
        """
        most = self._key.max_concurrent_requests
        if most is not None and self.num_in_progress + num_requests > most:
            now = f"{self.num_in_progress} requests are in progress, with {num_requests} more"
            raise self._refusal("max-concurrent-requests", now, most, _RETRY_SECONDS)
        if self._tokens is not None and self._tokens.level < 1.0:
            text, seconds = "all tokens of this minute are used of", self._tokens.seconds_until(1.0)
            raise self._refusal("tokens-per-minute", text, self._tokens.per_minute, seconds)
        if self._requests is not None:
            self._take(self._requests, num_requests, "requests")
        self.num_in_progress += num_requests
        self.usage.num_requests += num_requests

    def leave(self, num_requests: int) -> None:
        """Ends requests."""
        self.num_in_progress -= num_requests

    def reserve(self, num_tokens: int, *, is_exact: bool) -> int:
        """Takes the tokens that requests may use; `settle` must follow.

        Args:
            num_tokens: What they may use at most.
            is_exact: Whether the client has said so itself. If not, it is no more than there is
                in a minute.

        Returns:
            What was taken.

        Raises:
            RateLimited: There are too few left in this minute.
        """
        bucket = self._tokens
        if bucket is None:
            return 0
        amount = num_tokens if is_exact else min(num_tokens, bucket.per_minute)
        self._take(bucket, amount, "tokens")
        return amount

    def settle(self, num_reserved: int, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Gives back what was not used of a reservation, or takes what was used beyond it."""
        self.usage.num_prompt_tokens += num_prompt_tokens
        self.usage.num_generated_tokens += num_generated_tokens
        if self._tokens is not None:
            self._tokens.add(num_reserved - num_prompt_tokens - num_generated_tokens)

    def _take(self, bucket: Bucket, amount: int, what: str) -> None:
        if bucket.take(amount):
            return
        # What the bucket never holds is never there; no time to wait helps.
        can_wait = amount <= bucket.per_minute
        text = f"{amount} {what} are asked for, {max(0, math.floor(bucket.level))} are left of"
        retry_after = bucket.seconds_until(amount) if can_wait else None
        raise self._refusal(f"{what}-per-minute", text, bucket.per_minute, retry_after)

    def _refusal(self, field: str, text: str, bound: int, seconds: float | None) -> RateLimited:
        self.usage.num_refused += 1
        return RateLimited(
            f"{text} {'over ' if field.startswith('max') else ''}{field} {bound} of the API key "
            f'"{self._key.name}"',
            {"key": self._key.name, field.replace("-", "_"): str(bound)},
            retry_after=seconds,
        )
