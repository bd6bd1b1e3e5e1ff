"""Random faults under requests that come and are cancelled at random; every token is checked."""

import asyncio
import random
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

import pytest

from protos.wire.status import Reason
from router.errors import RequestError
from router.types.engine_events import Admitted, Finished, Tokens
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import FakeEngine, expected_tokens
from tests.router.fleets import CONFIG, request, running, states, until

NUM_ENGINES = 3
NUM_READERS = 24
NUM_FAULTS = 30
WANTED = {"finished": 100, "cancelled": 10}
"""How many requests must have ended so before it is over."""
SECONDS = 30.0
"""What a request may take at most; none comes near."""
QUICK = replace(CONFIG, decode_step_seconds=0.002, prefill_tokens_per_second=200_000.0)


UNLUCKY = (Reason.ENGINE_FAILED, Reason.DRAINING, Reason.NO_ENGINE, Reason.QUEUE_FULL)
"""How a request may end when too much happens to its engines."""


class Chaos:
    """A fleet, its readers, and what happens to its engines."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.outcomes = {"finished": 0, "cancelled": 0, "failed": 0}
        self.has_enough = asyncio.Event()
        self.is_over = False

    async def run(self):
        async with AsyncExitStack() as stack:
            self.engines = [
                await stack.enter_async_context(FakeEngine(QUICK)) for _ in range(NUM_ENGINES)
            ]
            self.addresses = [engine.address for engine in self.engines]
            self.fleet = await stack.enter_async_context(running(self.addresses))
            await until(lambda: states(self.fleet) == [EngineState.SERVING] * NUM_ENGINES)
            async with asyncio.timeout(2 * SECONDS), asyncio.TaskGroup() as group:
                for number in range(NUM_READERS):
                    group.create_task(self.read(random.Random(self.rng.random()), number))
                for _ in range(NUM_FAULTS):
                    await asyncio.sleep(self.rng.uniform(0, 0.05))
                    await self.disturb()
                await self.has_enough.wait()
                self.is_over = True
            await self.check_nothing_left()

    async def read(self, rng, number):
        while not self.is_over:
            prompt = [*range(number % 5, 20), number]
            asked = request(prompt, rng.choice((1, 5, 50)), temperature=rng.choice((0.0, 0.7)))
            self.outcomes[await self.ask(rng, asked)] += 1
            if all(self.outcomes[name] >= count for name, count in WANTED.items()):
                self.has_enough.set()

    async def ask(self, rng, asked):
        """Reads one request, some of them not to the end; returns its outcome."""
        params = asked.sampling_params
        bound = rng.randrange(params.max_tokens) if rng.random() < 0.2 else params.max_tokens + 1
        admissions, tokens = [], []
        outcome = "cancelled"
        try:
            async with asyncio.timeout(SECONDS), aclosing(self.fleet.generate(asked)) as events:
                async for event in events:
                    match event:
                        case Admitted():
                            admissions.append(event)
                        case Tokens():
                            tokens += event.token_ids
                        case Finished():
                            outcome = "finished"
                            assert len(tokens) == params.max_tokens
                    if len(tokens) >= bound:
                        break
        except RequestError as error:
            if error.status.reason not in UNLUCKY:
                raise
            outcome = "failed"
            await asyncio.sleep(0.01)
        assert len(admissions) == (1 if tokens else len(admissions))
        seed = admissions[0].seed if admissions and params.temperature else 0
        prompt = asked.prompt_token_ids
        assert tokens == expected_tokens(prompt, params.max_tokens, seed=seed)[: len(tokens)]
        return outcome

    async def disturb(self):
        engine = self.rng.choice(self.engines)
        match self.rng.randrange(6):
            case 0 | 1:
                await engine.restart()
            case 2:
                await engine.drain()
                engine.hand_back()
                await asyncio.sleep(0.01)
                await engine.restart()
            case 3:
                engine.refuse(Reason.QUEUE_FULL, 1.0)
                await asyncio.sleep(0.02)
                engine.refuse(None)
            case 4:
                left = [a for a in self.addresses if a != engine.address]
                self.fleet.set_addresses(left)
                await asyncio.sleep(self.rng.uniform(0, 0.3))
                self.fleet.set_addresses(self.addresses)
            case 5:
                engine.evict_all()
                engine.drop_deltas(1)

    async def check_nothing_left(self):
        self.fleet.set_addresses(self.addresses)
        await until(lambda: states(self.fleet) == [EngineState.SERVING] * NUM_ENGINES)
        for engine in self.engines:
            await until(lambda engine=engine: not engine.num_running + engine.num_waiting)
            assert engine.num_free_blocks == QUICK.num_blocks
        assert all(not engine.num_in_flight for engine in self.fleet.engines())
        assert all(not engine.num_in_flight_prefill_tokens for engine in self.fleet.engines())
        for engine in self.engines:
            # A last change, which also shows the index that one was lost before.
            engine.drop_deltas(0)
            engine.cache.store([1])
            engine.evict_all()
        await until(lambda: not any(e.num_indexed_blocks for e in self.fleet.engines()))
        # Reservations of blocks that nobody holds any more are all that can be left.
        await until(lambda: not self.fleet.statistics().index.num_speculative_entries)


@pytest.mark.parametrize("seed", range(2))
async def test_no_token_is_lost_or_repeated_and_nothing_is_left(seed):
    await Chaos(seed).run()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 130))
async def test_no_token_is_lost_or_repeated_in_many_fleets(seed):
    await Chaos(seed).run()
