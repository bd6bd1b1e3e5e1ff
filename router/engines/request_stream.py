"""The events of one request, between an engine's step messages and their reader."""

import asyncio
from collections.abc import Callable

from router.errors import SlowReader
from router.types import Admitted, EngineEvent, Finished, FinishReason, Tokens

_MAX_EVENT_TOKENS = 2048
"""The most tokens of one event, so that the message made of it has a bounded size."""


class RequestStream:
    """The events of one request; at most one of each kind waits, since tokens merge.

    A waiting token takes about 40 bytes, so all of them take 40 * `max_buffered_tokens` at most.

    An async iterator. It ends after `Finished`; an engine's error is raised as `EngineError`. A
    reader that leaves early must call `close`, which cancels the request on the engine.
    """

    def __init__(self, address: str, cancel: Callable[[], None], max_buffered_tokens: int) -> None:
        self._address = address
        self._cancel = cancel
        self._max_buffered_tokens = max_buffered_tokens
        self._admitted: Admitted | None = None
        self._tokens: list[int] = []
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
            if self._tokens:
                token_ids, self._tokens = self._tokens, []
                if len(token_ids) > _MAX_EVENT_TOKENS:
                    self._tokens = token_ids[_MAX_EVENT_TOKENS:]
                    del token_ids[_MAX_EVENT_TOKENS:]
                return Tokens(token_ids=token_ids)
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
        """Adds new tokens, merged with those waiting; none after the end."""
        if self._end is not None:
            return
        if self._tokens:
            self._tokens += token_ids
        else:
            self._tokens = token_ids
        if len(self._tokens) > self._max_buffered_tokens:
            self._cut_off()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def end(self, outcome: Finished | Exception) -> None:
        """Adds the last event; later ones are ignored."""
        if self._end is None:
            self._end = outcome
            self._wake()

    def _cut_off(self) -> None:
        bound = self._max_buffered_tokens
        self._tokens = []
        self.end(
            SlowReader(
                f"more than {bound} tokens wait for the reader; read faster",
                {"max_buffered_tokens": str(bound)},
            )
        )
        self._cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
