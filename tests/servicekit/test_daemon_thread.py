import asyncio
import threading

import pytest

from servicekit.daemon_thread import run_in_daemon_thread


async def test_result_of_the_work_is_returned():
    def work():
        return threading.current_thread()

    thread = await run_in_daemon_thread(work, "some work")

    assert (thread.name, thread.daemon) == ("some work", True)
    assert thread is not threading.main_thread()


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
async def test_error_of_the_work_is_raised(kind):
    def work():
        raise kind("no")

    with pytest.raises(kind, match="no"):
        await run_in_daemon_thread(work, "work")


@pytest.mark.parametrize(
    ("error", "raised"), [(StopIteration(), RuntimeError), (BaseException("panic"), BaseException)]
)
async def test_error_of_any_kind_is_answered(error, raised):
    def work():
        raise error

    async with asyncio.timeout(10):
        with pytest.raises(raised):
            await run_in_daemon_thread(work, "work")


@pytest.mark.parametrize("fails", [False, True])
def test_loop_that_ends_waits_for_no_work_and_the_work_for_no_loop(fails, recwarn):
    goes_on, threads = threading.Event(), []

    def work():
        threads.append(threading.current_thread())
        goes_on.wait(60)
        if fails:
            raise OSError("nobody hears of it")

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_in_daemon_thread(work, "work"), 0.1)

    # Else this waits for the work, which waits for what comes after it.
    asyncio.run(give_up())
    goes_on.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
