"""The demo's processes are gone when it is, however it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.demo import services as demo_services
from examples.demo.errors import ServiceFailedError
from examples.demo.services import Service, Services

STAND_IN = "tests.examples.stand_in"


def ignore(service: Service, state: str) -> None:
    pass


def session_members(session: int) -> list[int]:
    """Processes of a session that still run."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(own_session) == session and state != "Z":
            members.append(int(folder.name))
    return members


def assert_gone(session: int) -> None:
    deadline = time.monotonic() + 10
    while session_members(session) and time.monotonic() < deadline:
        time.sleep(0.01)  # a killed process takes a moment to go
    assert not session_members(session)


async def start_and_wait(folder: Path, behaviour: str, seconds: float = 30) -> None:
    async with Services(folder) as services:
        service = services.start("engine-0", [STAND_IN, behaviour])
        await services.wait_ready([service], seconds, ignore)


async def test_service_is_ready_when_its_probe_says_so_and_stopped_at_the_end(tmp_path):
    states = []
    async with Services(tmp_path) as services:
        service = services.start("engine-0", [STAND_IN, "good"])
        await services.wait_ready([service], 30, lambda one, state: states.append(state))
        assert states[-1] == "ready"
        assert set(states[:-1]) <= {"starting"}
    assert service.process.returncode == -signal.SIGTERM


async def test_service_that_fails_is_reported_with_its_last_words(tmp_path):
    with pytest.raises(ServiceFailedError, match=r"ended with exit code 2(?s:.*)no memory"):
        await start_and_wait(tmp_path, "fails")


async def test_service_that_never_becomes_ready_is_given_up(tmp_path):
    with pytest.raises(ServiceFailedError, match="engine-0 is not ready after 0 s"):
        await start_and_wait(tmp_path, "silent", seconds=0.2)


async def test_stubborn_service_and_its_child_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_services, "STOP_SECONDS", 0.2)
    async with Services(tmp_path) as services:
        service = services.start("engine-0", [STAND_IN, "stubborn"])
        await services.wait_ready([service], 30, ignore)
        assert len(session_members(service.process.pid)) == 2
    assert_gone(service.process.pid)


async def test_cancelling_while_services_stop_kills_them_at_once(tmp_path):
    ready = asyncio.Event()
    started: list[Service] = []

    async def serve() -> None:
        async with Services(tmp_path) as services:
            started.append(services.start("engine-0", [STAND_IN, "stubborn"]))
            await services.wait_ready(started, 30, ignore)
            ready.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve())
        await ready.wait()
        # By now it waits for a process that does not heed SIGTERM.
        await asyncio.sleep(0)
        task.cancel()
    assert_gone(started[0].process.pid)


async def test_service_that_is_lost_later_is_noticed(tmp_path):
    async with Services(tmp_path) as services:
        service = services.start("engine-0", [STAND_IN, "good"])
        await services.wait_ready([service], 30, ignore)
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait(timeout=10)
        with pytest.raises(ServiceFailedError, match="exit code -9"):
            services.check()


OWNER = f"""
import asyncio, sys
from pathlib import Path
from examples.demo.services import Services

async def own():
    async with Services(Path(sys.argv[1])) as services:
        service = services.start("engine-0", ["{STAND_IN}", "good"])
        await services.wait_ready([service], 30, lambda one, state: None)
        print(service.process.pid, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(own())
"""


def test_service_ends_when_its_owner_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        session = int(owner.stdout.readline())
        assert session_members(session) == [session]
        owner.kill()
    assert_gone(session)


async def test_services_never_share_a_port(tmp_path):
    async with Services(tmp_path) as services:
        started = [services.start(f"engine-{index}", [STAND_IN, "silent"]) for index in range(4)]
        addresses = [a for one in started for a in (one.address, one.operations_address)]
    assert len(set(addresses)) == len(addresses)
