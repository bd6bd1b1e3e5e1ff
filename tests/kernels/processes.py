"""Processes of a test that wait for each other."""

import time
from multiprocessing import connection
from multiprocessing.process import BaseProcess


def finish(processes: list[BaseProcess], deadline: float) -> None:
    """Waits until all have ended well; the first that fails, or the deadline, ends all.

    The deadline is in seconds from now.
    """
    end = time.monotonic() + deadline
    running = {process.sentinel: process for process in processes}
    while running and (seconds := end - time.monotonic()) > 0:
        for sentinel in connection.wait(running, seconds):
            # It closes its pipes some time before it has ended.
            running.pop(sentinel).join(max(0.0, end - time.monotonic()))
        if any(process.exitcode for process in processes):
            break
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * len(processes), f"exit codes {codes}; None did not end"
