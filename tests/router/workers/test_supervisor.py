"""The supervisor, with workers that are processes but no routers."""

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from examples.demo.services import http_get
from servicekit.listening import listen

ROOT = Path(__file__).parents[3]
TIMEOUT = 30.0


class Router:
    def __init__(self, process, log_path):
        self.process = process
        self._log_path = log_path

    @property
    def log(self):
        return self._log_path.read_text()

    @property
    def pids(self):
        """The processes of the workers, by number."""
        return dict(re.findall(r"worker started worker=(\d+) pid=(\d+)", self.log))

    async def until(self, condition):
        async with asyncio.timeout(TIMEOUT):
            while not condition(self):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_logged(self, pattern, count=1):
        await self.until(lambda router: len(re.findall(pattern, router.log)) >= count)

    async def get(self, path):
        port = re.search(r"operations_port=(\d+)", self.log)[1]
        return await asyncio.to_thread(http_get, f"127.0.0.1:{port}", path)

    async def metric(self, name):
        text = await self.get("/metrics")
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        # No gauge is left while no worker runs.
        return float(found[1]) if found else 0.0

    async def wait(self):
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()

    async def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return await self.wait()


@asynccontextmanager
async def supervised(folder, name="fine", *options):
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fakes.light_workers", "--engines", f"{name}.test:1"),
            *("--workers", "2", "--port", "0", "--operations-port", "0", *options),
            cwd=ROOT,
            stderr=log,
        )
    router = Router(process, log_path)
    try:
        yield router
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_counters_of_a_worker_that_ended_are_kept_and_it_is_started_again(tmp_path):
    async with supervised(tmp_path) as router:
        await router.until_logged("workers listening")
        assert await router.get("/readyz") == "serving: 2 of 2 workers are ready\n"
        assert await router.metric("pagestream_router_retries_total") == 20

        os.kill(int(router.pids["0"]), signal.SIGKILL)
        os.kill(int(router.pids["1"]), signal.SIGTERM)
        await router.until_logged("worker ended worker=0 restart_seconds=0 detail=.* signal 9")
        await router.until_logged("worker ended worker=1 restart_seconds=0 detail=.* exit code 0")

        while await router.metric("pagestream_router_requests_in_flight") != 2:
            assert await router.metric("pagestream_router_retries_total") >= 20
        assert await router.metric("pagestream_router_retries_total") == 41
        assert await router.metric('pagestream_router_worker_restarts_total{worker="0"}') == 1
        assert await router.metric('pagestream_router_worker_ready{worker="0"}') == 1
        assert await router.end() == 0
        assert not any(map(is_running, router.pids.values()))
        assert "Traceback" not in router.log


async def test_worker_that_dies_again_and_again_is_started_ever_more_rarely(tmp_path):
    async with supervised(tmp_path, "die") as router:
        await router.until_logged("worker ended worker=0 restart_seconds=1 ")
        assert "ERROR" not in router.log
        assert await router.end() == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refuse", "router: --option is wrong"),
        ("crash", r"router: worker \d: its process ended with exit code 1; the log above may .*"),
    ],
)
async def test_what_no_worker_can_start_with_is_said_once_and_ends_all(tmp_path, name, message):
    async with supervised(tmp_path, name) as router:
        assert await router.wait() == 2
        assert len(re.findall(f"^{message}$", router.log, re.MULTILINE)) == 1
        assert router.log.count("router: ") == 1
        assert not any(map(is_running, router.pids.values()))


async def test_killed_supervisor_takes_its_workers_along(tmp_path):
    async with supervised(tmp_path) as router:
        await router.until_logged("workers listening")
        stopped, other = map(int, router.pids.values())
        # Even one that can do nothing about it.
        os.kill(stopped, signal.SIGSTOP)
        await router.end(signal.SIGKILL)
        await router.until(lambda _: not is_running(stopped) and not is_running(other))


async def test_worker_that_does_not_end_is_killed_and_a_second_signal_ends_all_at_once(tmp_path):
    async with supervised(tmp_path, "hang", "--drain-grace-seconds", "3600") as router:
        await router.until_logged("workers listening")
        router.process.send_signal(signal.SIGTERM)
        await router.until_logged("router draining")
        assert await router.end() == 128 + signal.SIGTERM
        await router.until(lambda one: not any(map(is_running, one.pids.values())))


async def test_port_in_use_is_refused_before_any_worker_starts(tmp_path):
    [listener] = listen("127.0.0.1", 0, "port")
    with listener:
        port = listener.getsockname()[1]
        for option in ("http-port", "operations-port"):
            async with supervised(tmp_path, "fine", f"--{option}", str(port)) as router:
                assert await router.wait() == 2
                assert router.log == (
                    f"router: cannot listen on 127.0.0.1:{port} (Address already in use); "
                    f"choose another --{option} or host\n"
                )
