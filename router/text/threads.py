"""A few threads for work that would hold the event loop up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

from router.errors import RequestError
from router.event_loop import let_loop_go_first

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class Threads:
    """Runs functions for callers that wait. One that is cancelled leaves nothing behind."""

    def __init__(self, num_threads: int, name: str) -> None:
        """Starts no thread yet."""
        self._threads = ThreadPoolExecutor(
            num_threads, thread_name_prefix=name, initializer=let_loop_go_first
        )
        # The queue of the threads keeps a cancelled call, and its text, until one of them is free.
        self._free = asyncio.Semaphore(num_threads)

    async def run(
        self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Runs a function in one of the threads; if cancelled, what comes of it is dropped.

        Raises:
            RequestError: The system has no room for a thread, or they are shut down.
        """
        await self._free.acquire()
        has_failed = False

        def work() -> _Result:
            if has_failed:
                raise RuntimeError("its caller was told that it would not run")
            return function(*arguments)

        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError as error:
            # It is in the queue all the same.
            has_failed = True
            self._free.release()
            raise RequestError(f"no thread can be started: {error}") from error
        # A thread cannot be interrupted: it is free when its work is done, not when nobody waits.
        future.add_done_callback(self._take_back)
        return await asyncio.shield(future)

    def _take_back(self, future: "asyncio.Future[Any]") -> None:
        self._free.release()
        # Of one whose caller left nobody else would look at the error, which asyncio complains of.
        if not future.cancelled():
            future.exception()

    def shut_down(self) -> None:
        """Begins nothing more, and leaves the threads to their work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
