"""What everybody is told while the core sends no heartbeat, and once it does again."""

import asyncio
import contextlib

from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine_service.core.types import StepStats
from engine_service.server.health import SERVICE_NAME
from protos.pagestream.engine.v1 import engine_pb2
from tests.engine_service.server.harness import (
    WAIT_SECONDS,
    admission,
    generate_request,
    read,
    read_until,
    running_engine,
    status_of,
    submission,
)

SILENCE_SECONDS = 1.0
"""The shortest that the option takes."""
FAST_STEP = StepStats(num_prefill_tokens=1000, step_seconds=0.1)
"""After it the server knows the core's rate, and waits no longer than for that."""
ENGINE_FAILED = (14, "ENGINE_FAILED")


@contextlib.asynccontextmanager
async def watched_engine(**options):
    """Yields a server that watches its core, which is silent unless the test lets it speak."""
    values = {"core_silence_seconds": SILENCE_SECONDS, **options}
    async with running_engine(**values) as engine, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(engine.server.wait_core_lost())
        yield engine, watching
        watching.cancel()


@contextlib.asynccontextmanager
async def signs_of_life(core):
    """Makes a core say that it lives, as an idle one does."""

    async def speak():
        while True:
            core.step()
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        speaking = tasks.create_task(speak())
        yield
        speaking.cancel()


async def wait_http(engine, path, status):
    """Asks until an answer has a status, and returns its body."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (answer := await engine.http(path))[0] != status:  # noqa: ASYNC110 (as a probe does)
            await asyncio.sleep(0.02)
    return answer[1]


async def wait_silence(engine, seconds):
    """Waits until the core's silence is longer, by the engine's own account."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await engine.metric("core_silence_seconds") <= seconds:  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.02)


async def health_of(engine, service):
    stub = health_pb2_grpc.HealthStub(engine.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def end_of(call):
    status = await status_of(call)
    return status.code, status.reason


def watch_cache(engine):
    return engine.stub.WatchCache(engine_pb2.WatchCacheRequest())


async def test_frozen_core_ends_and_refuses_everything_until_it_wakes_up(caplog):
    async with watched_engine() as (engine, _):
        async with signs_of_life(engine.core):
            single = engine.stub.Generate(generate_request())
            stale = await engine.core.next_request()
            engine.core.step(
                {stale.request_id: [5]}, admissions=[admission(stale)], stored=[77], stats=FAST_STEP
            )
            await read_until(single, lambda message: message.token_ids)
            many, watch = engine.stub.GenerateMany(), watch_cache(engine)
            await many.write(submission(1))
            other = await engine.core.next_request()
            await read(watch)

        for call in (single, many, watch):
            assert await end_of(call) == ENGINE_FAILED
        assert "frozen" in await wait_http(engine, "/livez", 503)
        assert (await engine.http("/readyz"))[0] == 503
        for service in ("", SERVICE_NAME):
            assert await health_of(engine, service) == "NOT_SERVING"
        for call in (
            engine.stub.Generate(generate_request()),
            engine.stub.GenerateMany(),
            watch_cache(engine),
            engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest()),
        ):
            assert await end_of(call) == ENGINE_FAILED
        assert await engine.metric("core_freezes_total") == 1
        assert await engine.metric("core_silence_seconds") > SILENCE_SECONDS
        assert await engine.metric("ready") == 0
        assert await engine.metric('requests_total{outcome="engine_failed"}') == 3

        async with signs_of_life(engine.core):
            await wait_http(engine, "/readyz", 200)
            assert await health_of(engine, "") == await health_of(engine, SERVICE_NAME) == "SERVING"
            # What was failed is cancelled in the core.
            cancelled = {await engine.core.next_cancelled_id() for _ in range(2)}
            assert cancelled == {stale.request_id, other.request_id}
            watch = watch_cache(engine)
            assert list((await read(watch)).snapshot.block_hashes) == [77]
            call = engine.stub.Generate(generate_request(9))
            request = await engine.core.next_request()
            assert list(request.prompt_token_ids) == [9]
            engine.core.step({request.request_id: [6], stale.request_id: [5]})
            assert list((await read_until(call, lambda message: message.token_ids)).token_ids) == [
                6
            ]
            for open_call in (call, watch):
                open_call.cancel()
        assert await engine.metric("core_freezes_total") == 1
    assert "core frozen silence_seconds=1.25 limit_seconds=1 num_open_requests=2" in caplog.text
    assert "core woke up" in caplog.text


async def test_core_that_stays_frozen_is_given_up():
    async with watched_engine(frozen_core_exit_seconds=0.5) as (engine, watching):
        await asyncio.wait_for(watching, WAIT_SECONDS)
        assert engine.server.is_core_frozen
        assert engine.server.core_silence > SILENCE_SECONDS + 0.5
        assert not engine.server.is_core_lost
        assert not engine.server.is_ready


async def test_step_as_long_as_its_work_is_at_the_engine_s_own_rate_is_not_a_freeze():
    async with watched_engine() as (engine, _):
        # 10 tokens a second, by the engine's own measure; the step below has four more.
        engine.core.step(stats=StepStats(num_prefill_tokens=1, step_seconds=0.1))
        async with signs_of_life(engine.core):
            call = engine.stub.Generate(generate_request(1, 2, 3, 4))
            request = await engine.core.next_request()
        await wait_silence(engine, SILENCE_SECONDS + 0.5)
        assert (await engine.http("/livez"))[0] == 200
        engine.core.step({request.request_id: [5]}, admissions=[admission(request)])
        assert list((await read_until(call, lambda message: message.token_ids)).token_ids) == [5]
        call.cancel()


async def test_drain_does_not_wait_for_a_frozen_core():
    async with running_engine(core_silence_seconds=SILENCE_SECONDS) as engine:
        engine.core.step(stats=FAST_STEP)
        call = engine.stub.Generate(generate_request())
        await engine.core.next_request()
        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as tasks:
            # Its grace is as long as the bound.
            draining = tasks.create_task(engine.server.drain())
            assert await end_of(call) == ENGINE_FAILED
            await draining
        assert engine.server.is_core_frozen
