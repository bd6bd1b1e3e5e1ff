"""A `pagestream serve` that a test starts, and the processes that it leaves."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[3]
_MARK = "PAGESTREAM_TEST_MARK"
_SECONDS = 60.0


class Serve:
    """One command, whose processes are known by a variable that they all inherit."""

    def __init__(self, folder, *arguments, **variables):
        """Starts `python -m ARGUMENTS…`; its output goes to files in `folder`."""
        self.mark = f"{_MARK}={uuid.uuid4().hex}"
        self.output, self.errors = folder / "output", folder / "errors"
        name, _, value = self.mark.partition("=")
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env={**os.environ, name: value, **variables},
            )

    def processes(self):
        """The IDs of all of its processes that run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def wait_for(self, condition):
        """Waits until a condition holds."""
        ends = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < ends, self.errors.read_text()
            time.sleep(0.01)

    def wait_for_error(self, text):
        """Waits until its standard error has a text."""
        self.wait_for(lambda: text in self.errors.read_text())

    def wait_until_ready(self):
        """Waits until it has said where it serves."""
        self.wait_for(lambda: "Ctrl-C ends all" in self.output.read_text())

    def end(self, number=signal.SIGTERM):
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        """Waits for the end of it and of all its processes; returns the exit code."""
        code = self.process.wait(timeout=_SECONDS)
        self.wait_for(lambda: not self.processes())
        return code

    def close(self):
        """Leaves no process, whatever has failed."""
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
