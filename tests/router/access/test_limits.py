"""The limits of a key are exact, however many ask at once; time passes by the test's clock only."""

import asyncio
from collections import Counter

import pytest

from protos.wire.sampling_params import SamplingParams
from router.access.keyring import Keyring
from router.errors import RateLimited
from router.request.pipeline import Bounds, Pipeline
from router.server.metrics import RouterMetrics
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import Admitted, Finished, FinishReason, Tokens
from tests.fakes.fake_fleet import ENGINE, FakeFleet
from tests.router.access.key_files import KEY, OTHER, entry, write
from tests.router.pipelines import collect, request, tokens

PROMPT = tokens(80, 80, 80, 80)
PARAMS = SamplingParams(max_tokens=6)
NUM_USED = 5
"""Tokens of a request: those of the prompt, and one of the answer."""
BOUNDS = Bounds(
    max_concurrent_requests=4096,
    max_prompt_bytes=1000,
    max_request_bytes=1 << 30,
    max_queued_prompt_tokens=1 << 30,
)


class GatedFleet(FakeFleet):
    """Answers each request with one token, once the gate is open."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()

    async def generate(self, request):
        self.num_open += 1
        try:
            yield Admitted(engine=ENGINE, num_cached_tokens=0, seed=1)
            await self.gate.wait()
            yield Tokens(token_ids=[80])
            yield Finished(reason=FinishReason.LENGTH)
        finally:
            self.num_open -= 1


class Router:
    """A pipeline and the clients of one key."""

    def __init__(self, pipeline, fleet, keyring, now):
        self.pipeline, self.fleet, self.keyring, self.now = pipeline, fleet, keyring, now
        self.limits = keyring.of_key(KEY).limits

    async def ask(self, count, *, key=KEY, params=PARAMS):
        """Asks so often at once; returns how many were answered, and the refusals."""
        asked = request(PROMPT, sampling_params=params, caller=self.keyring.of_key(key))
        calls = [asyncio.create_task(collect(self.pipeline, asked)) for _ in range(count)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [answer for answer in answers if isinstance(answer, Exception)]
        assert all(isinstance(refusal, RateLimited) for refusal in refusals), refusals[:1]
        return count - len(refusals), refusals


@pytest.fixture
def router_of(tmp_path):
    pools = []

    def make(**limits):
        now, fleet = [100.0], GatedFleet()
        path = write(tmp_path / "keys", entry(**limits), entry(OTHER, "b"))
        keyring = Keyring(path, clock=lambda: now[0])
        pools.append(TokenizerPool(fleet.fetch_tokenizer, 1))
        tokenizers = pools[-1].__enter__()
        pipeline = Pipeline(fleet, tokenizers, RouterMetrics(), BOUNDS)
        return Router(pipeline, fleet, keyring, now)

    yield make
    for pool in pools:
        pool.__exit__(None, None, None)


async def test_concurrency_is_exact(router_of):
    router = router_of(max_concurrent_requests=100)

    async def open_when_all_have_asked():
        async with asyncio.timeout(20):
            while router.limits.usage.num_refused < 900 or router.fleet.num_open < 100:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert router.fleet.num_open == router.limits.num_in_progress == 100
        router.fleet.gate.set()

    opening = asyncio.create_task(open_when_all_have_asked())
    num_answered, refusals = await router.ask(1000)
    await opening

    assert num_answered == 100
    assert {refusal.retry_after for refusal in refusals} == {1.0}
    assert 'over max-concurrent-requests 100 of the API key "a"' in str(refusals[0])
    assert router.limits.num_in_progress == 0
    assert (await router.ask(100))[0] == 100


async def test_requests_in_a_minute_are_exact(router_of):
    router = router_of(requests_per_minute=300)
    router.fleet.gate.set()

    num_answered, refusals = await router.ask(1000)

    assert num_answered == 300
    assert refusals[0].retry_after == pytest.approx(0.2)
    assert (await router.ask(10, key=OTHER))[0] == 10
    router.now[0] += 30
    assert (await router.ask(1000))[0] == 150
    router.now[0] += 3600
    assert (await router.ask(1000))[0] == 300


async def test_tokens_in_a_minute_are_reserved_and_settled_exactly(router_of):
    router = router_of(tokens_per_minute=1000)

    async def open_when_all_have_asked():
        async with asyncio.timeout(20):
            while router.limits.usage.num_refused < 900:  # noqa: ASYNC110
                await asyncio.sleep(0)
        router.fleet.gate.set()

    opening = asyncio.create_task(open_when_all_have_asked())
    # Each takes 10 tokens, and uses 5 of them.
    num_answered, refusals = await router.ask(1000)
    await opening

    assert num_answered == 100
    # Which is told with the seconds until there are ten, or one.
    assert Counter(refusal.retry_after for refusal in refusals).keys() <= {0.6, 0.06}
    assert router.limits.usage.num_prompt_tokens == 400
    assert router.limits.usage.num_generated_tokens == 100
    # 500 are left: 99 leave 5, and the hundredth wants 10.
    answered = [(await router.ask(1))[0] for _ in range(110)]
    assert answered == [1] * 99 + [0] * 11
    router.now[0] += 0.5
    assert (await router.ask(1))[0] == 1


async def test_request_over_the_limit_itself_is_told_that_waiting_is_no_use(router_of):
    router = router_of(tokens_per_minute=9)
    router.fleet.gate.set()

    num_answered, [refusal] = await router.ask(1)

    assert (num_answered, refusal.retry_after) == (0, None)
    assert "10 tokens are asked for, 9 are left of tokens-per-minute 9" in str(refusal)


async def test_request_without_a_maximum_takes_at_most_all(router_of):
    router = router_of(tokens_per_minute=20)
    router.fleet.gate.set()
    for _ in range(2):
        # All 20 are taken, 15 come back, and the next one finds too few.
        answered, _ = await router.ask(1, params=SamplingParams())
    assert answered == 0
    assert (await router.ask(1))[0] == 1


async def test_use_beyond_what_was_taken_is_a_debt(router_of):
    limits = router_of(tokens_per_minute=60).limits
    limits.settle(limits.reserve(60, is_exact=True), 60, 30)

    with pytest.raises(RateLimited, match="all tokens of this minute are used") as caught:
        limits.enter(1)
    assert caught.value.retry_after == 31


async def test_changed_limits_count_at_once(router_of, tmp_path):
    router = router_of(requests_per_minute=10)
    router.fleet.gate.set()
    assert (await router.ask(20))[0] == 10
    write(tmp_path / "keys", entry(requests_per_minute=15, max_concurrent_requests=3))
    await router.keyring.refresh()
    assert (await router.ask(1))[0] == 1
    write(tmp_path / "keys", entry())
    await router.keyring.refresh()
    assert (await router.ask(50))[0] == 50
