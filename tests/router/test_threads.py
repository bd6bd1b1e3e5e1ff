import asyncio
import gc
import threading
import weakref

import pytest

from router.threads import Threads


class Work:
    """Goes on until it is told to end."""

    def __init__(self):
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, result=None):
        self.began.set()
        assert self.may_end.wait(10)
        return result


@pytest.fixture
def threads():
    threads = Threads(1, "test")
    yield threads
    threads.shut_down()


async def begun(threads, work, *arguments):
    task = asyncio.ensure_future(threads.run(work, *arguments))
    assert await asyncio.to_thread(work.began.wait, 10)
    return task


async def test_result_and_error_are_those_of_the_function(threads):
    assert await threads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(divmod, 7, 0)


async def test_one_that_is_cancelled_while_it_waits_never_runs(threads):
    work, calls = Work(), []
    first = await begun(threads, work, "first")
    text = "x" * 1000
    waiting = [asyncio.ensure_future(threads.run(calls.append, text)) for _ in range(3)]
    await asyncio.sleep(0)

    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    work.may_end.set()

    assert await first == "first"
    assert await threads.run(divmod, 7, 2) == (3, 1)
    assert calls == []


async def test_thread_is_free_when_its_work_is_done_and_not_when_nobody_waits(threads):
    work = Work()
    first = await begun(threads, work)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.ensure_future(threads.run(divmod, 7, 2))

    done, _ = await asyncio.wait([second], timeout=0.05)
    assert not done
    work.may_end.set()
    assert await second == (3, 1)


async def test_cancelled_waiter_keeps_nothing(threads):
    class Text:
        pass

    work, text = Work(), Text()
    first = await begun(threads, work)
    waiting = asyncio.ensure_future(threads.run(id, text))
    await asyncio.sleep(0)
    kept = weakref.ref(text)

    waiting.cancel()
    await asyncio.wait([waiting])
    del text, waiting
    gc.collect()

    assert kept() is None
    work.may_end.set()
    await first
