from router.workers.backoff import Backoff


def test_waits_double_up_to_a_minute_and_begin_anew_after_a_long_run():
    backoff = Backoff()

    waits = [backoff.seconds_after(0.1) for _ in range(9)]

    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [backoff.seconds_after(seconds) for seconds in (60, 59, 59)] == [0, 1, 2]
