import asyncio
import gc
import threading
import weakref

import pytest

from router.errors import RequestError
from router.text.threads import Threads


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


async def test_error_of_work_that_nobody_waits_for_is_not_complained_of(threads):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    work = Work()

    def fails():
        work()
        raise ValueError

    task = asyncio.ensure_future(threads.run(fails))
    assert await asyncio.to_thread(work.began.wait, 10)
    task.cancel()
    await asyncio.wait([task])
    work.may_end.set()
    # In the same thread, so it comes after the error.
    await threads.run(divmod, 7, 2)
    del task
    gc.collect()

    assert complaints == []


async def test_thread_that_cannot_start_is_an_error_and_leaves_no_work_behind(threads, monkeypatch):
    def no_room(thread):
        raise RuntimeError("can't start new thread")

    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_room)
        for _ in range(3):
            with pytest.raises(RequestError, match="no thread can be started: can't start"):
                await threads.run(calls.append, "lost")

    assert await threads.run(divmod, 7, 2) == (3, 1)
    assert calls == []
