"""A fleet and its engines for a test, and the ways to ask it."""

import asyncio
from array import array
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace

from protos.wire.sampling_params import SamplingParams
from router.engines.client import ClientSettings
from router.engines.fleet import Fleet
from router.request.dispatcher import Dispatcher
from router.types.engine_events import Admitted, Finished, TokenRequest, Tokens
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig

SETTINGS = ClientSettings(min_backoff=0.01, max_backoff=0.05)
CONFIG = FakeEngineConfig(block_size=4)
SLOW = replace(CONFIG, decode_step_seconds=0.002)
TIMEOUT = 10.0


async def until(condition):
    """Waits for a condition that nothing announces; gives up loudly."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class DispatchingFleet:
    """A fleet and what sends requests to it, as one."""

    def __init__(self, addresses, **options):
        self._fleet = Fleet(addresses, SETTINGS)
        dispatcher = Dispatcher(self._fleet, **options)
        self.generate, self.end_requests = dispatcher.generate, dispatcher.end_requests

    def __getattr__(self, name):
        return getattr(self._fleet, name)


@asynccontextmanager
async def running(addresses, **options):
    """A running fleet, whatever its engines do."""
    fleet = DispatchingFleet(addresses, **options)
    task = asyncio.create_task(fleet.run())
    try:
        yield fleet
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


@asynccontextmanager
async def fleet_of(*configs, **options):
    """Fake engines and a fleet that has connected all of them."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine(config)) for config in configs]
        fleet = await stack.enter_async_context(running([e.address for e in engines], **options))
        await until(lambda: states(fleet) == [EngineState.SERVING] * len(engines))
        yield fleet, engines


def states(fleet):
    return [engine.state for engine in fleet.engines()]


def request(prompt, max_tokens=8, *, model="fake", timeout=None, **params):
    params = {"temperature": 0.0, "max_tokens": max_tokens} | params
    return TokenRequest(
        request_id="r",
        model=model,
        prompt_token_ids=array("i", prompt),
        sampling_params=SamplingParams(**params),
        timeout=timeout,
    )


async def collect(fleet, asked):
    """Returns admission, tokens and finish of a request, in a form that shows any disorder."""
    async with asyncio.timeout(TIMEOUT), aclosing(fleet.generate(asked)) as events:
        received = [event async for event in events]
    admitted, *middle, finished = received
    assert isinstance(admitted, Admitted)
    assert isinstance(finished, Finished)
    assert all(isinstance(event, Tokens) and event.token_ids for event in middle)
    return admitted, [token for event in middle for token in event.token_ids], finished


async def rest_of(events):
    async with asyncio.timeout(TIMEOUT):
        return [event async for event in events]


async def first_tokens(events):
    async with asyncio.timeout(TIMEOUT):
        assert isinstance(await anext(events), Admitted)
        return (await anext(events)).token_ids


async def tokens_of(events):
    """Returns all tokens still to come, and the finish."""
    *middle, finished = await rest_of(events)
    assert all(isinstance(event, Tokens) for event in middle), middle
    return [token for event in middle for token in event.token_ids], finished


def engine_of(engines, admitted):
    return next(engine for engine in engines if engine.address == admitted.engine)


class Observer:
    """Writes down what it is told."""

    def __init__(self):
        self.placed, self.admitted, self.retried, self.resumed = [], [], [], []
        self.added = []

    def of_model(self, name):
        return self

    def request_placed(self, placement, seconds, added):
        assert seconds >= 0
        self.added.append(added)
        self.placed.append(placement)

    def request_admitted(self, placement, num_cached_tokens):
        self.admitted.append((placement.engine, num_cached_tokens))

    def request_retried(self, engine, error):
        self.retried.append((engine, error.status.reason))

    def request_resumed(self, error, num_tokens):
        cause = error.status.metadata.get("cause", error.status.reason)
        self.resumed.append((cause, num_tokens))
