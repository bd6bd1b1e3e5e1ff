"""An engine service in processes of its own, and what becomes of them."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import grpc

from protos.pagestream.engine.v1 import engine_pb2_grpc
from protos.wire.channel import client_options

ROOT = Path(__file__).parents[2]
FAKE = "tests.fakes.engine_process"
"""The real processes around a core without a model."""
REAL = "engine_service"
WAIT_SECONDS = 60.0


class EngineProcess:
    """One started service; `ready` or `loading` must come before ports are known."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.port = self.operations_port = 0

    async def wait_line(self, word):
        """Reads the log up to the line of an event."""
        async with asyncio.timeout(WAIT_SECONDS):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line)
                if f" engine_service {word} " in line:
                    self.port = int(re.search(r" port=(\d+)", line)[1])
                    self.operations_port = int(re.search(r"operations_port=(\d+)", line)[1])
                    return
        raise AssertionError("the engine ended early:\n" + "".join(self.lines))

    async def wait_end(self):
        """Returns the exit code, with the rest of the log read."""
        async with asyncio.timeout(WAIT_SECONDS):
            rest = await self.process.stderr.read()
            self.lines += rest.decode().splitlines(keepends=True)
            return await self.process.wait()

    def core_pid(self):
        """Returns the process ID of the core, or None before it is started."""
        pids = [pid for pid in self.children() if b"spawn_main" in _command_line(pid)]
        return pids[0] if pids else None

    async def wait_core(self):
        """Waits until the core's process exists, and returns its ID."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.core_pid() is None:  # noqa: ASYNC110 (nothing tells of it)
                await asyncio.sleep(0.01)
        return self.core_pid()

    def children(self):
        """Returns the IDs of the server's children."""
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def channel(self):
        """Returns a channel, to be closed."""
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=client_options())

    @contextlib.asynccontextmanager
    async def stub(self):
        """Yields a client's stub."""
        async with self.channel() as channel:
            yield engine_pb2_grpc.EngineServiceStub(channel)

    async def http_status(self, path):
        """Returns the status code of the operations port's answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.operations_port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        async with asyncio.timeout(WAIT_SECONDS):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return int(answer.split()[1])


@contextlib.asynccontextmanager
async def engine_process(module, *arguments):
    """Starts a service on free ports, and kills whatever is left of it in the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--port", "0", "--operations-port", "0", *arguments),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
        # A group of its own, so that a test can press Ctrl-C.
        start_new_session=True,
    )
    try:
        yield EngineProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def press_ctrl_c(engine):
    """Signals all processes of the service, as a terminal does."""
    os.killpg(engine.process.pid, signal.SIGINT)


@contextlib.contextmanager
def stopped(pid):
    """Stops a process for as long as the block takes; it may be killed meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def wait_gone(pid):
    """Waits until a process has ended, whoever's child it is."""
    async with asyncio.timeout(WAIT_SECONDS):
        while _is_running(pid):  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.01)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()
