"""The events of one request, between an engine's step messages and their reader."""

import asyncio
from collections.abc import Callable, Mapping

from router.engines.logprob_buffer import LogprobBuffer
from router.errors import SlowReader
from router.types.engine_events import (
    Admitted,
    EngineEvent,
    Finished,
    FinishReason,
    PromptLogprobs,
    TokenLogprobs,
    Tokens,
)

_MAX_EVENT_TOKENS = 2048
"""The most tokens and candidates of one event, so that the message made of it has a bounded size.
"""

_TOKEN_BYTES = 40
_CANDIDATE_BYTES = 8

_MAX_PROMPT_BYTES = 1 << 24
"""Bytes of logprobs of the prompt that may wait: those of 100,000 tokens with 20 candidates each.

They come as fast as the engine computes the prompt, many times faster than tokens, and their number
is bounded by the prompt's.
"""


def max_tokens_waiting(max_buffered_tokens: int, num_top: int) -> int:
    """Returns how many tokens with candidates take no more memory than so many without any."""
    return max(1, max_buffered_tokens * _TOKEN_BYTES // (_TOKEN_BYTES + _CANDIDATE_BYTES * num_top))


def _max_event_tokens(num_top: int) -> int:
    return max(1, _MAX_EVENT_TOKENS // (1 + num_top))


class RequestStream:
    """The events of one request; at most one of each kind waits, since tokens merge.

    A waiting token takes about 40 bytes, its logprob 4 and each candidate 8 more, and as much again
    until the buffer is cleared of those that were read. The more candidates, the fewer tokens may
    wait, so that all of them take 88 * `max_buffered_tokens` bytes and what one message brings, at
    most. Logprobs of the prompt have a bound of their own, 16 MiB and what one message brings.

    An async iterator. It ends after `Finished`; an engine's error is raised as `EngineError`. A
    reader that leaves early must call `close`, which cancels the request on the engine.
    """

    def __init__(self, address: str, cancel: Callable[[], None], max_buffered_tokens: int) -> None:
        """Waits for events of the engine at an address.

        Args:
            address: "host:port" of the engine.
            cancel: Cancels the request on the engine.
            max_buffered_tokens: Tokens that may wait when more come; of `max_tokens_waiting` with
                logprobs.
        """
        self._address = address
        self._cancel = cancel
        self._max_buffered_tokens = max_buffered_tokens
        self._admitted: Admitted | None = None
        self._tokens: list[int] = []
        self._logprobs: LogprobBuffer | None = None
        """Of `_tokens`; None for a request without logprobs."""
        self._prompt_logprobs: LogprobBuffer | None = None
        """None if none waits."""
        self._prompt_position = 0
        """Of the first of them."""
        self._end: Finished | Exception | None = None
        self._is_read_to_end = False
        self._waiter: asyncio.Future[None] | None = None
        # Getting it costs a system call each time (before Python 3.12).
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> EngineEvent:
        """Waits for the next event and returns it; one reader at a time.

        Raises:
            EngineError: The engine refused or failed the request, or was lost.
            SlowReader: Too many tokens waited; the request was cancelled.
        """
        while True:
            if self._admitted is not None:
                admitted, self._admitted = self._admitted, None
                return admitted
            if self._prompt_logprobs is not None:
                return self._take_prompt_logprobs(self._prompt_logprobs)
            if self._tokens:
                if self._logprobs is not None:
                    return self._take_tokens(self._logprobs)
                token_ids, self._tokens = self._tokens, []
                if len(token_ids) > _MAX_EVENT_TOKENS:
                    self._tokens = token_ids[_MAX_EVENT_TOKENS:]
                    del token_ids[_MAX_EVENT_TOKENS:]
                return Tokens(token_ids=token_ids, is_last=self._is_finished)
            if self._is_read_to_end:
                raise StopAsyncIteration
            if self._end is not None:
                self._is_read_to_end = True
                if isinstance(self._end, Exception):
                    raise self._end
                return self._end
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """Cancels the request on the engine, unless it ended; may be called more than once."""
        if self._end is None:
            self._is_read_to_end = True
            self._end = Finished(reason=FinishReason.STOP)
            self._cancel()

    def admit(self, num_cached_tokens: int, seed: int) -> None:
        """Adds the admission."""
        self._admitted = Admitted(
            engine=self._address, num_cached_tokens=num_cached_tokens, seed=seed
        )
        self._wake()

    def add_tokens(self, token_ids: list[int]) -> None:
        """Adds new tokens, merged with those waiting; none after the end.

        If too many wait already, the request ends instead.
        """
        if self._end is not None:
            return
        # However many one message brings: its size is bounded, and after its stream was held up, an
        # engine sends many at once to a reader who was waiting for them.
        bound = self._max_buffered_tokens
        if len(self._tokens) > bound:
            self._cut_off(
                f"more than {bound} tokens wait for the reader; read faster",
                {"max_buffered_tokens": str(bound)},
            )
            return
        if self._tokens:
            self._tokens += token_ids
        else:
            self._tokens = token_ids
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def add_tokens_with_logprobs(self, token_ids: list[int], logprobs: TokenLogprobs) -> None:
        """Adds new tokens, as `add_tokens`, and their logprobs."""
        if self._end is not None:
            return
        if self._logprobs is None:
            self._logprobs = LogprobBuffer(logprobs.num_top)
        self._logprobs.add(logprobs)
        self.add_tokens(token_ids)

    def add_prompt_logprobs(self, event: PromptLogprobs) -> None:
        """Adds the next logprobs of the prompt, merged with those waiting; none after the end."""
        if self._end is not None:
            return
        waiting = self._prompt_logprobs
        if waiting is None:
            waiting = self._prompt_logprobs = LogprobBuffer(event.logprobs.num_top)
            self._prompt_position = event.first_position
        # However much the first message brings: its size is bounded.
        elif waiting.num_bytes > _MAX_PROMPT_BYTES:
            self._cut_off(
                f"logprobs of {len(waiting)} tokens of the prompt wait for the reader; read faster",
                {"max_prompt_logprob_bytes": str(_MAX_PROMPT_BYTES)},
            )
            return
        waiting.add(event.logprobs)
        self._wake()

    def end(self, outcome: Finished | Exception) -> None:
        """Adds the last event; later ones are ignored."""
        if self._end is None:
            self._end = outcome
            self._wake()

    def _take_tokens(self, logprobs: LogprobBuffer) -> Tokens:
        most = _max_event_tokens(logprobs.num_top)
        token_ids, self._tokens = self._tokens[:most], self._tokens[most:]
        taken = logprobs.take(len(token_ids))
        return Tokens(token_ids=token_ids, logprobs=taken, is_last=self._is_finished)

    @property
    def _is_finished(self) -> bool:
        """Whether nothing waits but a `Finished`."""
        return not self._tokens and isinstance(self._end, Finished)

    def _take_prompt_logprobs(self, waiting: LogprobBuffer) -> PromptLogprobs:
        first = self._prompt_position
        count = min(len(waiting), _max_event_tokens(waiting.num_top))
        event = PromptLogprobs(first_position=first, logprobs=waiting.take(count))
        self._prompt_position += count
        if not len(waiting):
            self._prompt_logprobs = None
        return event

    def _cut_off(self, message: str, metadata: Mapping[str, str]) -> None:
        self._tokens = []
        self._logprobs = self._prompt_logprobs = None
        self.end(SlowReader(message, metadata))
        self._cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
