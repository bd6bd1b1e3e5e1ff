"""A router of two worker processes, which its clients take for one."""

import asyncio
import contextlib
import os
import re
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx

from protos.pagestream.router.v1 import router_pb2_grpc
from protos.wire.channel import client_options
from tests.fakes.checked_stream import CheckedStream
from tests.fakes.service_process import HOST, free_ports
from tests.system.fleets import TIMEOUT, check, fleet_of, until

NUM_STREAMS = 16
NUM_TOKENS = 100


async def wait_ready(fleet):
    async def are_ready():
        return await fleet.metric("worker_ready") == 2

    await until(are_ready)


def pids(fleet):
    """Returns the process IDs of the workers, by number."""
    log = fleet.router.log_path.read_text()
    found = re.findall(r"worker started worker=(\d+) pid=(\d+)", log)
    return {int(number): int(pid) for number, pid in found}


def has_ended(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@asynccontextmanager
async def stubs(fleet, number=NUM_STREAMS):
    """Clients with a connection each."""
    options = [*client_options(), ("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as opened:
        yield [
            router_pb2_grpc.RouterServiceStub(
                await opened.enter_async_context(
                    grpc.aio.insecure_channel(fleet.router.address, options=options)
                )
            )
            for _ in range(number)
        ]


@asynccontextmanager
async def running_streams(fleet):
    """Streams that all have tokens, over a connection each; they have ended afterwards."""
    streams = [CheckedStream([*range(40), i], NUM_TOKENS) for i in range(NUM_STREAMS)]
    async with stubs(fleet) as clients, asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        for stream, stub in zip(streams, clients, strict=True):
            group.create_task(stream.run(stub, TIMEOUT / 2))

        async def have_tokens():
            return all(stream.token_ids for stream in streams)

        await until(have_tokens)
        assert not any(stream.is_ended for stream in streams)
        yield streams


async def shares(fleet):
    """Returns the requests in progress of each worker."""
    return [
        await fleet.metric("worker_requests_in_flight", worker=str(number)) for number in (0, 1)
    ]


async def test_two_workers_are_one_router(tmp_path):
    [http_port] = free_ports(1)
    options = ("--workers", "2", "--http-port", str(http_port))
    async with fleet_of(tmp_path, (), router_options=options) as fleet:
        await wait_ready(fleet)
        # The system spreads connections: all at one worker is one case of 32,768.
        async with running_streams(fleet) as streams:
            by_worker = await shares(fleet)
            assert min(by_worker) > 0
            assert sum(by_worker) == await fleet.metric("requests_in_flight") == NUM_STREAMS
        check(streams)
        await check_http(fleet, http_port)
        await check_killed_worker(fleet)

        async with running_streams(fleet) as streams:
            assert min(await shares(fleet)) > 0
            fleet.router.send_signal(signal.SIGTERM)
        check(streams)
        assert await fleet.router.wait() == 0
        assert all(map(has_ended, pids(fleet).values()))
        log = fleet.router.log_path.read_text()
        assert "Traceback" not in log
        assert " ERROR " not in log


async def check_http(fleet, port):
    """Checks that each worker serves HTTP, and that both count in one series."""
    num_before = await fleet.metric("requests_total", outcome="length")

    async def ask():
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=TIMEOUT) as client:
            assert (await client.get("/health")).status_code == 200
            models = (await client.get("/v1/models")).json()["data"]
            body = {"model": models[0]["id"], "prompt": [5, 6], "max_tokens": 3}
            return await client.post("/v1/completions", json=body)

    answers = await asyncio.gather(*(ask() for _ in range(NUM_STREAMS)))

    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    num_counted = await fleet.metric("requests_total", outcome="length") - num_before
    assert num_counted == NUM_STREAMS


async def check_killed_worker(fleet):
    """Checks that a worker that is killed takes its own streams along, and nothing else."""
    killed = pids(fleet)[0]
    num_done = await fleet.metric("requests_total")
    async with running_streams(fleet) as streams:
        of_killed, of_other = await shares(fleet)
        os.kill(killed, signal.SIGKILL)
    lost = [stream for stream in streams if stream.error]
    assert {stream.error.code() for stream in lost} == {grpc.StatusCode.UNAVAILABLE}
    assert len(lost) == of_killed
    check([stream for stream in streams if not stream.error])

    await wait_ready(fleet)
    assert pids(fleet)[0] != killed
    assert await fleet.metric("worker_restarts_total", worker="0") == 1
    assert "detail=its process was ended by signal 9" in fleet.router.log_path.read_text()
    # What the killed one had counted is kept.
    assert await fleet.metric("requests_total") == num_done + of_other
