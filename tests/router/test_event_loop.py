import asyncio
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from router.event_loop import GrpcEventLoop, let_loop_run_on


@pytest.fixture
def sockets():
    reading, writing = socket.socketpair()
    with reading, writing:
        yield reading, writing


def run(main):
    with asyncio.Runner(loop_factory=GrpcEventLoop) as runner:
        runner.run(main)


def test_bytes_that_wait_wake_the_loop_once_and_one_is_left_for_its_reader(sockets):
    reading, writing = sockets
    read = []

    async def main():
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def on_bytes(name):
            read.append((name, reading.recv(100)))
            woken.set()

        writing.send(b"12345")
        loop.add_reader(reading, on_bytes, "grpc")
        async with asyncio.timeout(10):
            await woken.wait()
            woken.clear()
            writing.send(b"6")
            await woken.wait()
        loop.remove_reader(reading)

    run(main())

    assert read == [("grpc", b"5"), ("grpc", b"6")]


def test_files_other_than_sockets_are_read_by_their_reader_alone(sockets):
    reading, writing = sockets
    read = []

    async def main():
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def on_bytes():
            read.append(reading.recv(100))
            woken.set()

        writing.send(b"12345")
        loop.add_reader(reading.fileno(), on_bytes)
        async with asyncio.timeout(10):
            await woken.wait()
        loop.remove_reader(reading.fileno())

    run(main())

    assert read == [b"12345"]


class _Registrations(uvloop.Loop):
    """Keeps what is registered in the end."""

    def __init__(self):
        super().__init__()
        self.registered = []

    def add_reader(self, fd, callback, *args):
        self.registered.append((fd, callback))
        super().add_reader(fd, callback, *args)


class _WatchedLoop(GrpcEventLoop, _Registrations):
    """Keeps also what was asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def add_reader(self, fd, callback, *args):
        self.asked.append((fd, callback))
        super().add_reader(fd, callback, *args)


def test_calls_of_grpc_complete_and_its_socket_is_read_ahead():
    async def main():
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with asyncio.timeout(20), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            calls = (stub.Check(health_pb2.HealthCheckRequest()) for _ in range(64))
            answers = await asyncio.gather(*calls)
        await server.stop(None)
        return [answer.status for answer in answers]

    with asyncio.Runner(loop_factory=_WatchedLoop) as runner:
        statuses = runner.run(main())
        loop = runner.get_loop()

    assert statuses == [health_pb2.HealthCheckResponse.SERVING] * 64
    asked = {fd: callback for fd, callback in loop.asked if isinstance(fd, socket.socket)}
    assert len(asked) == 1
    registered = dict(loop.registered)
    assert all(registered[fd] is not callback for fd, callback in asked.items())


@pytest.fixture
def policies():
    """Returns the scheduling policies of all threads by ID, which have them again afterwards."""
    if not hasattr(os, "SCHED_BATCH"):
        return {}
    found = {}
    for entry in Path("/proc/self/task").iterdir():
        # A thread that ends meanwhile needs nothing.
        with suppress(ProcessLookupError):
            found[int(entry.name)] = os.sched_getscheduler(int(entry.name))
    yield found
    for thread, policy in found.items():
        with suppress(OSError):
            os.sched_setscheduler(thread, policy, os.sched_param(0))


def can_be_set(thread):
    """Returns whether this system has the policy, and a sandbox allows to set it."""
    try:
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    except (AttributeError, OSError):
        return False
    return True


def test_only_the_main_thread_may_interrupt_others(policies):
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    main = threading.main_thread().native_id
    try:
        is_settable = can_be_set(thread.native_id)

        let_loop_run_on()

        if is_settable:
            assert os.sched_getscheduler(thread.native_id) == os.SCHED_BATCH
            assert os.sched_getscheduler(main) == policies[main]
    finally:
        done.set()
        thread.join()


def test_loop_runs_where_policies_must_not_be_set(monkeypatch):
    refused = []

    def refuse(thread, policy, param):
        refused.append(thread)
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        let_loop_run_on()
    finally:
        done.set()
        thread.join()

    assert (thread.native_id in refused) == hasattr(os, "SCHED_BATCH")


def test_loop_that_ends_waits_for_no_thread():
    goes_on = threading.Event()

    async def start_thread():
        started = threading.Event()
        running = asyncio.ensure_future(asyncio.to_thread(lambda: (started.set(), goes_on.wait())))
        while not started.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        running.cancel()

    # Else it waits for ever, and the test's deadline ends it.
    with asyncio.Runner(loop_factory=GrpcEventLoop) as runner:
        runner.run(start_thread())
    goes_on.set()
