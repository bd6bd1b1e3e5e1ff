"""Real engines are killed, stopped and restarted under load, and no client sees a seam.

The demo model in float32 on the CPU: what is streamed must be, token for token, what an undisturbed
fleet gives.
"""

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import grpc
import pytest

from examples.demo.load import RIGHT_ANSWERS, wait_for_engines
from examples.demo.model import CHECKPOINT
from examples.demo.services import HOST, Services, http_get
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.channel import client_options

ROOT = Path(__file__).parents[2]
NUM_STREAMS = 64
TIMEOUT = 60.0
ENGINE = ["engine_service", "--model", str(CHECKPOINT), "--device", "cpu", "--cpu-threads", "1"]
ENGINE += ["--block-size", "16", "--num-blocks", "512", "--max-num-batched-tokens", "512"]


@dataclass
class Stream:
    """What one client asked and saw."""

    prompt: str
    temperature: float
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    num_admissions: int = 0
    finish: router_pb2.Finish | None = None


@dataclass
class Fleet:
    services: Services
    engines: list
    router: object
    stub: router_pb2_grpc.RouterServiceStub


@asynccontextmanager
async def running_fleet(folder, *options):
    async with Services(folder) as services:
        engines = [services.start(f"engine-{i}", [*ENGINE, *options]) for i in range(2)]
        addresses = ",".join(engine.address for engine in engines)
        router = services.start("router", ["router", "--engines", addresses])
        await services.wait_ready([*engines, router], TIMEOUT, lambda service, state: None)
        await wait_for_engines(router.address, 2)
        async with grpc.aio.insecure_channel(router.address, options=client_options()) as channel:
            yield Fleet(services, engines, router, router_pb2_grpc.RouterServiceStub(channel))


async def run(stub, stream, progress):
    """Streams one answer; half of the streams are greedy, the others draw with a known seed."""
    request = router_pb2.GenerateRequest(
        chat=router_pb2.Chat(messages=[router_pb2.ChatMessage(role="user", content=stream.prompt)]),
        sampling_params=router_pb2.SamplingParams(
            temperature=stream.temperature, seed=7, max_tokens=100, ignore_eos=True
        ),
    )
    async for response in stub.Generate(request, timeout=TIMEOUT):
        stream.num_admissions += response.HasField("admission")
        stream.token_ids += response.token_ids
        stream.text += response.text
        if response.HasField("finish"):
            stream.finish = response.finish
        progress()


async def run_all(fleet, disturb=None):
    """Runs all streams, and `disturb` once a third of the tokens came; returns the streams."""
    prompts = islice(cycle(RIGHT_ANSWERS), NUM_STREAMS)
    streams = [Stream(f"{prompt} {i}", (0.0, 0.8)[i // 2 % 2]) for i, prompt in enumerate(prompts)]
    is_under_way = asyncio.Event()

    def progress():
        if sum(len(stream.token_ids) for stream in streams) > NUM_STREAMS * 33:
            is_under_way.set()

    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(run(fleet.stub, stream, progress))
        if disturb is not None:
            await is_under_way.wait()
            assert not all(stream.finish for stream in streams)
            await disturb()
    return streams


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    async def run_undisturbed():
        async with running_fleet(tmp_path_factory.mktemp("undisturbed")) as fleet:
            return await run_all(fleet)

    return asyncio.run(run_undisturbed())


def check(streams, undisturbed):
    for stream, expected in zip(streams, undisturbed, strict=True):
        assert stream.token_ids == expected.token_ids, stream.prompt
        assert len(stream.token_ids) == 100
        assert stream.text == expected.text
        assert stream.num_admissions == 1
        assert stream.finish.completion_token_count == 100
        assert stream.finish.prompt_token_count == expected.finish.prompt_token_count


def metric(service, name):
    text = http_get(service.operations_address, "/metrics")
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


async def check_nothing_left(fleet, engines):
    """The router and these engines hold nothing of the requests any more."""
    async with asyncio.timeout(10):
        for engine in engines:
            while metric(engine, "pagestream_engine_kv_cache_usage_ratio"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert metric(fleet.router, "pagestream_router_requests_in_flight") == 0
    assert metric(fleet.router, "pagestream_router_engine_requests_in_flight") == 0


async def test_streams_of_an_engine_that_is_killed_go_on(undisturbed, tmp_path):
    async with running_fleet(tmp_path) as fleet:
        victim, survivor = fleet.engines

        async def kill():
            victim.process.kill()

        check(await run_all(fleet, kill), undisturbed)
        assert metric(fleet.router, "pagestream_router_failovers_total") > 0
        assert metric(fleet.router, "pagestream_router_resumed_tokens_total") > 0
        await check_nothing_left(fleet, [survivor])


async def test_streams_of_an_engine_that_is_stopped_go_on_and_it_comes_back(undisturbed, tmp_path):
    async with running_fleet(tmp_path) as fleet:
        victim, survivor = fleet.engines

        async def stop():
            os.killpg(victim.process.pid, signal.SIGSTOP)

        check(await run_all(fleet, stop), undisturbed)
        text = http_get(fleet.router.operations_address, "/metrics")
        assert re.search(r'failovers_total\{cause="stalled"\} [1-9]', text)
        os.killpg(victim.process.pid, signal.SIGCONT)
        await wait_for_engines(fleet.router.address, 2)
        await check_nothing_left(fleet, [victim, survivor])


async def test_rolling_restart_loses_and_repeats_nothing(undisturbed, tmp_path):
    # No time to finish: every request is handed back.
    options = ["--drain-grace-seconds", "0.1"]
    restarted = []
    async with running_fleet(tmp_path, *options) as fleet:

        async def restart_all():
            for engine in fleet.engines:
                engine.process.terminate()
                assert await asyncio.to_thread(engine.process.wait, TIMEOUT) == 0
                port = engine.address.rpartition(":")[2]
                ports = ["--host", HOST, "--port", port, "--operations-port", "0"]
                command = [sys.executable, "-m", *ENGINE, *options, *ports]
                with (tmp_path / f"restarted-{port}.log").open("wb") as log:
                    process = await asyncio.create_subprocess_exec(
                        *command, cwd=ROOT, stdout=log, stderr=log
                    )
                restarted.append(process)
                await wait_for_engines(fleet.router.address, 2)

        try:
            check(await run_all(fleet, restart_all), undisturbed)
            text = http_get(fleet.router.operations_address, "/metrics")
            assert 'failovers_total{cause="engine_failed"} 0.0' in text
            assert re.search(r'failovers_total\{cause="draining"\} [1-9]', text)
            assert metric(fleet.router, "pagestream_router_engine_requests_in_flight") == 0
        finally:
            for process in restarted:
                process.terminate()
                assert await process.wait() == 0
