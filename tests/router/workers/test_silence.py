import asyncio

from router.workers.silence import Silence


class Worker:
    number = 3

    def __init__(self):
        self.asked = []

    def ask(self):
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]


async def test_worker_that_answers_is_asked_at_each_check_and_never_silent():
    worker = Worker()
    silence = Silence(worker)

    for _ in range(4):
        silence.check()
        worker.asked[-1].set_result(None)

    assert len(worker.asked) == 4
    assert not silence.is_silent


async def test_worker_is_silent_after_two_checks_without_an_answer_until_it_answers(caplog):
    caplog.set_level("INFO")
    worker = Worker()
    silence = Silence(worker)
    found = []

    for _ in range(4):
        silence.check()
        found.append(silence.is_silent)
    assert found == [False, False, True, True]
    # What it has not answered once, it is not asked again.
    assert len(worker.asked) == 1

    worker.asked[0].set_result(None)
    silence.check()
    assert not silence.is_silent
    assert [record.getMessage() for record in caplog.records] == [
        "worker silent worker=3",
        "worker answers again worker=3",
    ]
