"""What a pipeline takes at a time."""

import asyncio

import pytest

from router.errors import (
    Draining,
    NoEngine,
    QueueFull,
)
from router.types.engine_events import Admitted
from tests.fakes.fake_fleet import ENGINE
from tests.router.pipelines import (
    TEXT,
    collect,
    request,
    tokens,
)


async def test_requests_over_the_bound_are_refused_until_one_ends(pipeline, fleet):
    fleet.put(*[Admitted(engine=ENGINE, num_cached_tokens=0, seed=1)] * 2)
    first, second = pipeline.generate(request()), pipeline.generate(request())
    await anext(first)
    await anext(second)

    for refused in (collect(pipeline, request()), pipeline.tokenize("", TEXT)):
        with pytest.raises(QueueFull, match="2 requests are in progress") as caught:
            await refused
        assert caught.value.status.retry_after == 1.0

    await first.aclose()
    fleet.answer([80])
    assert (await collect(pipeline, request()))[-1].finish
    await second.aclose()


async def test_queued_prompt_tokens_are_bounded_until_an_engine_begins(pipeline, fleet, observer):
    waiting = pipeline.generate(request(tokens(*[1] * 120)))
    first = asyncio.ensure_future(anext(waiting))
    await fleet.is_asked.wait()
    assert pipeline.queued_prompt_tokens.held == observer.num_queued == 120

    with pytest.raises(QueueFull) as caught:
        await collect(pipeline, request(tokens(*[1] * 81)))

    assert caught.value.status.message == (
        "81 more queued prompt tokens on top of 120 are 201, over max_queued_prompt_tokens 200"
    )
    assert caught.value.status.retry_after == 1.0
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1))
    await first
    assert pipeline.queued_prompt_tokens.held == observer.num_queued == 0
    fleet.answer([80])
    assert (await collect(pipeline, request(tokens(*[1] * 81))))[-1].finish
    await waiting.aclose()
    assert pipeline.queued_prompt_tokens.held == 0


async def test_prompt_that_never_reached_an_engine_is_queued_no_more(pipeline, fleet, observer):
    fleet.put(NoEngine("none", retry_after=1.0))
    with pytest.raises(NoEngine):
        await collect(pipeline, request())

    fleet.is_asked.clear()
    waiting = asyncio.ensure_future(anext(pipeline.generate(request())))
    await fleet.is_asked.wait()
    assert pipeline.queued_prompt_tokens.held > 0
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert pipeline.queued_prompt_tokens.held == observer.num_queued == 0


async def test_bytes_of_requests_are_bounded_until_they_end(pipeline, fleet):
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1))
    running = pipeline.generate(request(num_bytes=1500))
    await anext(running)
    message = "501 more bytes of requests on top of 1500 are 2001, over max_request_bytes 2000"

    for refused in (
        collect(pipeline, request(num_bytes=501)),
        pipeline.tokenize("", TEXT, num_bytes=501),
        pipeline.detokenize("", tokens(1), skip_special_tokens=True, num_bytes=501),
    ):
        with pytest.raises(QueueFull, match=message):
            await refused

    await running.aclose()
    assert pipeline.request_bytes.held == 0
    await pipeline.tokenize("", TEXT, num_bytes=2001)
    assert pipeline.request_bytes.held == 0


async def test_draining_refuses_the_new_and_waits_for_the_old(pipeline, fleet):
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1))
    running = pipeline.generate(request())
    await anext(running)

    pipeline.drain()

    for refused in (
        collect(pipeline, request()),
        pipeline.tokenize("", TEXT),
        pipeline.detokenize("", tokens(1), skip_special_tokens=True),
    ):
        with pytest.raises(Draining):
            await refused
    idle = asyncio.ensure_future(pipeline.wait_idle())
    fleet.answer([80])
    assert not idle.done()
    assert [delta.finish async for delta in running][-1]
    await asyncio.wait_for(idle, 10)
