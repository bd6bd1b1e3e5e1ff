"""A few threads for work that would hold the event loop up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from router.event_loop import let_loop_go_first

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class Threads:
    """Runs functions for callers that wait.

    The number of callers that wait for a thread is bounded by the requests under way, and one that
    is cancelled leaves nothing behind.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        """Starts no thread yet."""
        self._threads = ThreadPoolExecutor(
            num_threads, thread_name_prefix=name, initializer=let_loop_go_first
        )
        # The queue of the threads keeps a cancelled call, and its text, until one of them is free.
        self._num_free = asyncio.Semaphore(num_threads)

    async def run(
        self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Runs a function in one of the threads; if cancelled, its result is dropped."""
        await self._num_free.acquire()
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._threads, function, *arguments)
        except BaseException:
            self._num_free.release()
            raise
        # A thread cannot be interrupted: it is free when its work is done, not when nobody waits.
        future.add_done_callback(lambda _: self._num_free.release())
        return await asyncio.shield(future)

    def shut_down(self) -> None:
        """Begins nothing more, and leaves the threads to their work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
