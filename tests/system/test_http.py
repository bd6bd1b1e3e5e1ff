"""HTTP clients of a router that is a process of its own."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig
from tests.fakes.service_process import with_few_files

ROOT = Path(__file__).parents[2]
TIMEOUT = 60.0
MAX_FILES = 48
"""Fewer than the router's own and a third each for its gRPC and HTTP ports."""
SLOW = FakeEngineConfig(decode_step_seconds=0.05)


class Router:
    def __init__(self, process, log_path):
        self.process = process
        self.log_path = log_path
        self.port = 0
        self.grpc_port = 0

    @property
    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    async def until_logged(self, pattern):
        async with asyncio.timeout(TIMEOUT):
            while not (found := re.search(pattern, self.log)):
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.05)
        return found

    async def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return await self.wait()

    async def wait(self):
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()

    def check_log(self):
        assert "Traceback" not in self.log
        assert " ERROR " not in self.log


@asynccontextmanager
async def routing(folder, engine, *options, prefix=()):
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, "-m", "tests.fakes.plain_router", "--engines", engine),
            *("--port", "0", "--operations-port", "0", "--http-port", "0", *options),
            cwd=ROOT,
            stderr=log,
        )
    router = Router(process, log_path)
    try:
        router.port = int((await router.until_logged(r" http_port=(\d+)"))[1])
        router.grpc_port = int((await router.until_logged(r" port=(\d+)"))[1])
        yield router
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def stream_of(router, max_tokens):
    """Yields the events of a stream that has begun."""
    request = {"prompt": [5, 6], "max_tokens": max_tokens}
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=TIMEOUT) as client,
        client.stream("POST", "/plain/stream", json=request) as answer,
    ):
        assert answer.status_code == 200
        events = (line.removeprefix("data: ") async for line in answer.aiter_lines() if line)
        assert json.loads(await anext(events))["token_ids"]
        yield events


async def test_router_that_ends_waits_for_a_stream_but_not_for_a_client_that_left(tmp_path):
    async with FakeEngine(SLOW) as engine, routing(tmp_path, engine.address) as router:
        await router.until_logged("router ready")
        async with stream_of(router, 4000):
            pass
        async with stream_of(router, 20) as events:
            router.process.send_signal(signal.SIGTERM)
            last = [event async for event in events]
        num_tokens = sum(len(json.loads(event)["token_ids"]) for event in last[:-1])
        assert (num_tokens, last[-1]) == (19, "[DONE]")
        assert await router.wait() == 0
    router.check_log()
    assert "ends with requests in progress" not in router.log


async def test_stream_beyond_the_grace_is_told_why_it_ends(tmp_path):
    grace = ("--drain-grace-seconds", "0.5")
    async with FakeEngine(SLOW) as engine, routing(tmp_path, engine.address, *grace) as router:
        await router.until_logged("router ready")
        async with stream_of(router, 4000) as events:
            router.process.send_signal(signal.SIGTERM)
            last = [event async for event in events][-1]
        assert "drain grace" in json.loads(last)["error"]["message"]
        assert await router.wait() == 0
    router.check_log()


async def test_second_signal_ends_the_router_whatever_streams(tmp_path):
    async with FakeEngine(SLOW) as engine, routing(tmp_path, engine.address) as router:
        await router.until_logged("router ready")
        async with stream_of(router, 4000):
            router.process.send_signal(signal.SIGTERM)
            await router.until_logged("router draining")
            assert await router.end() != 0
    router.check_log()


async def test_router_without_file_descriptors_answers_who_sends_a_request(tmp_path):
    few_files = with_few_files(MAX_FILES)
    async with routing(tmp_path, "127.0.0.1:1", prefix=few_files) as router:
        with contextlib.ExitStack() as held:
            for port in (router.grpc_port, router.port):
                for _ in range(2 * MAX_FILES):
                    held.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            for _ in range(3):
                async with httpx.AsyncClient(timeout=TIMEOUT) as client:
                    answer = await client.get(f"http://127.0.0.1:{router.port}/health")
                assert answer.status_code == 503
        assert await router.end() == 0
    assert "HTTP port is short of system resources num_unlogged=0" in router.log
    assert len(router.log) < 16 * 1024
    assert "router.http" not in router.log
