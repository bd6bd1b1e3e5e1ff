import asyncio
import gc
import os
import socket
import threading

import pytest

from router.event_loop import GrpcEventLoop, collect_garbage_rarely, let_loop_run_on


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


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has it")
def test_only_the_main_thread_may_interrupt_others():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        let_loop_run_on()

        assert os.sched_getscheduler(thread.native_id) == os.SCHED_BATCH
        assert os.sched_getscheduler(threading.main_thread().native_id) == os.SCHED_OTHER
    finally:
        done.set()
        thread.join()


def test_what_is_there_is_left_out_of_later_searches_for_garbage():
    thresholds = gc.get_threshold()
    try:
        collect_garbage_rarely()

        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() > thresholds
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
