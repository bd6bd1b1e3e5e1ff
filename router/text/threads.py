"""A few threads for work that would block the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

from router.errors import RequestError
from router.event_loop import let_loop_go_first

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class Threads:
    """Runs functions for callers that wait. A cancelled call leaves nothing behind."""

    def __init__(self, num_threads: int, name: str) -> None:
        """Does not start a thread yet."""
        self._threads = ThreadPoolExecutor(
            num_threads, thread_name_prefix=name, initializer=let_loop_go_first
        )
        # Without it, a cancelled call and its text would stay queued until a thread is free.
        self._free = asyncio.Semaphore(num_threads)

    async def run(
        self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Runs a function in one of the threads; drops its result if cancelled.

        Raises:
            RequestError: The system cannot start a thread, or the threads are shut down.
        """
        await self._free.acquire()
        has_failed = False

        def work() -> _Result:
            if has_failed:
                raise RuntimeError("the caller has already got an error")
            return function(*arguments)

        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError as error:
            # The executor has queued it all the same.
            has_failed = True
            self._free.release()
            raise RequestError(f"no thread can be started: {error}") from error
        # A running thread cannot be interrupted: it is free when its work is done, not before.
        future.add_done_callback(self._take_back)
        return await asyncio.shield(future)

    def _take_back(self, future: "asyncio.Future[Any]") -> None:
        self._free.release()
        # Retrieve the error of an abandoned call, or asyncio logs that it was never retrieved.
        if not future.cancelled():
            future.exception()

    def shut_down(self) -> None:
        """Starts no further calls; running ones continue."""
        self._threads.shutdown(wait=False, cancel_futures=True)
