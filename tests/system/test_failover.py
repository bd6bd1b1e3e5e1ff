"""Real engines are killed, stopped and restarted under load, and no client sees a seam.

The demo model in float32 on the CPU: what is streamed must be, token for token, what an undisturbed
fleet gives.
"""

import asyncio
import signal
from dataclasses import dataclass, field
from itertools import cycle, islice

from examples.demo.load import RIGHT_ANSWERS
from examples.demo.model import CHECKPOINT
from protos.pagestream.router.v1 import router_pb2
from tests.fakes.service_process import HOST, ServiceProcess
from tests.system.fleets import fleet_of

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


def real_engine(port, log_path, *options) -> ServiceProcess:
    """Returns an engine of the demo model, not started."""
    arguments = [*ENGINE, "--host", HOST, "--port", str(port), "--operations-port", "0", *options]
    return ServiceProcess(arguments, port, log_path)


def two_engines(folder, *options):
    return fleet_of(folder, options, options, make_engine=real_engine)


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

    async with asyncio.timeout(TIMEOUT), fleet.client() as stub, asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(run(stub, stream, progress))
        if disturb is not None:
            await is_under_way.wait()
            assert not all(stream.finish for stream in streams)
            await disturb()
    return streams


def check(streams, undisturbed):
    for stream, expected in zip(streams, undisturbed, strict=True):
        assert stream.token_ids == expected.token_ids, stream.prompt
        assert len(stream.token_ids) == 100
        assert stream.text == expected.text
        assert stream.num_admissions == 1
        assert stream.finish.completion_token_count == 100
        assert stream.finish.prompt_token_count == expected.finish.prompt_token_count


async def test_streams_of_an_engine_that_is_killed_go_on(undisturbed, tmp_path):
    async with two_engines(tmp_path) as fleet:
        victim, survivor = fleet.engines

        check(await run_all(fleet, victim.end), undisturbed)
        assert await fleet.metric("failovers_total") > 0
        assert await fleet.metric("resumed_tokens_total") > 0
        await fleet.check_nothing_left(survivor)


async def test_streams_of_an_engine_that_is_stopped_go_on_and_it_comes_back(undisturbed, tmp_path):
    async with two_engines(tmp_path) as fleet:
        victim, survivor = fleet.engines

        async def stop():
            victim.send_signal(signal.SIGSTOP)

        check(await run_all(fleet, stop), undisturbed)
        assert await fleet.metric("failovers_total", cause="stalled") > 0
        victim.send_signal(signal.SIGCONT)
        await fleet.wait_serving(victim, survivor)
        await fleet.check_nothing_left(victim, survivor)


async def test_rolling_restart_loses_and_repeats_nothing(undisturbed, tmp_path):
    # No time to finish: every request is handed back.
    async with two_engines(tmp_path, "--drain-grace-seconds", "0.1") as fleet:

        async def restart_all():
            for engine in fleet.engines:
                assert await engine.end(signal.SIGTERM) == 0
                await engine.start()
                await fleet.wait_serving(*fleet.engines)

        check(await run_all(fleet, restart_all), undisturbed)
        assert await fleet.metric("failovers_total", cause="engine_failed") == 0
        assert await fleet.metric("failovers_total", cause="draining") > 0
        await fleet.check_nothing_left(*fleet.engines)
        for engine in fleet.engines:
            assert await engine.end(signal.SIGTERM) == 0
