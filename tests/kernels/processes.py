"""Processes of a test that wait for each other."""

import time
from multiprocessing.process import BaseProcess


def finish(processes: list[BaseProcess], deadline: float) -> None:
    """Waits until all have ended well; the first that fails, or the deadline, ends all.

    The deadline is in seconds from now.
    """
    end = time.monotonic() + deadline
    while any(process.exitcode is None for process in processes):
        if time.monotonic() > end or any(process.exitcode for process in processes):
            break
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * len(processes), f"exit codes {codes}; None did not end"
