"""A router that runs out of file descriptors, or whose log nobody reads, serves on."""

import asyncio
import re
import signal
import socket
import sys

import grpc
from grpc_health.v1 import health_pb2

from protos.pagestream.router.v1 import router_pb2 as pb
from tests.engine_service.process_harness import wait_gone
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig
from tests.fakes.service_process import with_few_files
from tests.system.test_router import ROOT, Router, refusal, routing

Status = health_pb2.HealthCheckResponse
MAX_FILES = 36
"""Fewer than the router's own, a third for its gRPC port, and as many as one client may have of the
operations port."""
ENTRY = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S+ |  |[EWI]\d{4} ")


def requests(number):
    params = pb.SamplingParams(max_tokens=1)
    token_ids = pb.TokenIds(ids=[1])
    return pb.GenerateRequest(
        request_id=f"{number:0256d}", token_ids=token_ids, sampling_params=params
    )


async def test_router_without_file_descriptors_is_live_says_little_and_recovers(tmp_path):
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *with_few_files(MAX_FILES),
            *(sys.executable, "-m", "router", "--engines", "127.0.0.1:1"),
            *("--port", "0", "--operations-port", "0"),
            cwd=ROOT,
            stderr=log,
        )
    held = []
    try:
        async with asyncio.timeout(60):
            found = None
            while not found:
                await asyncio.sleep(0.05)
                found = re.search(r" port=(\d+) operations_port=(\d+)", text(log_path))
        port, operations_port = map(int, found.groups())
        router = Router(
            process=process, port=port, operations_port=operations_port, client=None, log=[]
        )
        for target in (port, operations_port):
            for _ in range(2 * MAX_FILES):
                held.append(socket.create_connection(("127.0.0.1", target), 10))
                # Half of a preface, and half of a request for the operations port.
                held[-1].sendall(b"PRI * HTTP")
        for _ in range(3):
            assert (await router.get("/livez"))[0] == 200
            await asyncio.sleep(0.5)
        for one in held:
            one.close()
        async with asyncio.timeout(20):
            client = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
            await client.channel_ready()
            await client.close()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        for one in held:
            one.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
    log = text(log_path)
    assert "short of system resources num_unlogged=0 error=Too many open files" in log
    assert len(log) < 64 * 1024
    assert all(map(ENTRY.match, log.splitlines()))


def text(path):
    return path.read_text(encoding="utf-8", errors="replace")


async def test_router_whose_log_nobody_reads_serves_and_ends():
    config = FakeEngineConfig(decode_step_seconds=0.001)
    options = ("--log-level", "debug")
    async with FakeEngine(config) as engine, routing(engine.address, options=options) as router:
        await router.watch_health(Status.SERVING)
        # More than the pipe and the test's own buffer hold.
        for start in range(0, 600, 200):
            calls = [router.stub.Generate(requests(start + i), timeout=20) for i in range(200)]
            for call in calls:
                assert [message async for message in call][-1].HasField("finish")
            assert (await router.get("/livez"))[0] == 200
        router.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await wait_gone(router.process.pid)
        assert await router.end() == 0


async def test_clients_forge_no_log_line_and_leave_no_traceback():
    config = FakeEngineConfig(decode_step_seconds=0.001)
    options = ("--log-level", "debug")
    async with FakeEngine(config) as engine, routing(engine.address, options=options) as router:
        await router.watch_health(Status.SERVING)
        for forged in ("x\n2026-11-28 00:00:00,000 INFO forged", "\x1b[2J", "\x9b2J", "\u2028"):
            request = requests(1)
            request.request_id = forged
            code, error = await refusal(router.stub.Generate(request, timeout=10))
            assert (code, error.reason) == ("INVALID_ARGUMENT", "BAD_REQUEST")
            assert error.metadata["field"] == "request_id"
            assert error.message.isprintable()

            request = requests(2)
            request.model = forged
            assert (await refusal(router.stub.Generate(request, timeout=10)))[0] == "NOT_FOUND"
        address = ("127.0.0.1", router.operations_port)
        with socket.create_connection(address), socket.create_connection(address) as half:
            half.sendall(b"GET /livez HTTP/1.1\r\n")
            half.shutdown(socket.SHUT_WR)
            assert (await router.get("/livez"))[0] == 200
            router.process.send_signal(signal.SIGTERM)
            assert await router.end() == 0
    lines = "".join(line.rstrip("\n") + "\n" for line in router.log).split("\n")[:-1]
    assert len([line for line in lines if "is not served" in line]) == 4
    assert all(map(ENTRY.match, lines))
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if "Traceback" in line or " ERROR " in line]
