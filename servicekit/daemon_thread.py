"""Runs blocking work that does not delay the process's exit."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


async def run_in_daemon_thread(work: Callable[[], _Result], name: str) -> _Result:
    """Runs work in a separate thread and returns its result, or raises its exception.

    An event loop waits for the threads of `asyncio.to_thread` when it closes, however long they
    take. It does not wait for this one. If the caller is cancelled, the result is dropped.

    Args:
        work: The function to run.
        name: Name of the thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def fail(error: BaseException) -> None:
        # A future takes no StopIteration.
        if isinstance(error, StopIteration):
            error = RuntimeError(f"{name} raised StopIteration")
        if not future.done():
            future.set_exception(error)

    def succeed(result: _Result) -> None:
        if not future.done():
            future.set_result(result)

    def run() -> None:
        # The loop may have been closed in the meantime.
        with contextlib.suppress(RuntimeError):
            try:
                result = work()
            # A library in Rust panics with what is no Exception.
            except BaseException as error:
                loop.call_soon_threadsafe(fail, error)
            else:
                loop.call_soon_threadsafe(succeed, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
