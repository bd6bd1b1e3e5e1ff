"""What one engine says or does harms none of the others, and no client."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import grpc
import pytest

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.status import Reason, code_number
from router.engines import tokenizer_source
from router.errors import EngineError, NoEngine
from router.request import dispatcher
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_state import EngineState
from tests.fakes import small_tokenizer
from tests.fakes.fake_engine import FakeEngine, expected_tokens
from tests.router.fleets import (
    CONFIG,
    SLOW,
    collect,
    fleet_of,
    request,
    running,
    states,
    tokens_of,
    until,
)

SERVING, UNAVAILABLE = EngineState.SERVING, EngineState.UNAVAILABLE


@pytest.fixture
def with_tokenizer(tmp_path):
    return replace(CONFIG, tokenizer=small_tokenizer.save(tmp_path))


class Lying(FakeEngine):
    """Announces one tokenizer and sends another with a template of its own."""

    def _tokenizer_files(self):
        files = super()._tokenizer_files()
        return [(name, content + b" " * self.is_asked) for name, content in files]

    is_asked = False

    async def GetTokenizer(self, request, context):
        self.is_asked = True
        async for message in super().GetTokenizer(request, context):
            yield message
        self.is_asked = False


class Hanging(FakeEngine):
    async def GetTokenizer(self, request, context):
        await asyncio.Event().wait()
        yield


async def test_tokenizer_of_an_engine_that_lies_is_never_used(with_tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer_source, "_REST_SECONDS", 0.0)
    async with Lying(with_tokenizer) as lying, running([lying.address]) as fleet:
        with TokenizerPool(fleet.fetch_tokenizer, 1, fleet.tokenizers_in_use) as pool:
            await until(lambda: states(fleet) == [SERVING])
            for _ in range(2):
                with pytest.raises(EngineError, match="all have the digest"):
                    await pool.get(fleet.model_info("fake"))
            async with FakeEngine(with_tokenizer) as good:
                fleet.set_addresses([lying.address, good.address])
                await until(lambda: states(fleet) == [SERVING] * 2)

                tokenizer = await pool.get(fleet.model_info("fake"))

                assert tokenizer.decode(tokenizer.encode_text("a"), skip_special_tokens=True) == "a"


async def test_engine_that_hangs_holds_no_text_of_its_model_up(with_tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer_source, "_HEDGE_SECONDS", 0.05)
    async with (
        Hanging(with_tokenizer) as hanging,
        FakeEngine(with_tokenizer) as good,
        running([hanging.address, good.address]) as fleet,
    ):
        await until(lambda: states(fleet) == [SERVING] * 2)
        async with asyncio.timeout(4):
            files = await fleet.fetch_tokenizer(fleet.model_info("fake"))

    assert files == small_tokenizer.files()


async def test_request_made_for_another_tokenizer_goes_to_no_engine(with_tokenizer):
    async with fleet_of(with_tokenizer) as (fleet, (engine,)):
        info = fleet.model_info("fake")
        for changes in ({"tokenizer_sha256": "0" * 64}, {"vocab_size": 5}, {"fingerprint": "x"}):
            with pytest.raises(NoEngine, match='model "fake" has changed') as raised:
                await collect(fleet, replace(request([1]), model_info=replace(info, **changes)))
            assert raised.value.status.retry_after is not None
        await collect(fleet, replace(request([1]), model_info=info))

        assert len(engine.submissions) == 1


async def test_request_with_tokens_does_not_go_on_at_an_engine_of_another_tokenizer(
    with_tokenizer, monkeypatch
):
    monkeypatch.setattr(dispatcher, "_PATIENCE_SECONDS", 0.5)
    other = replace(SLOW, tokenizer=with_tokenizer.tokenizer)
    async with FakeEngine(SLOW) as first, FakeEngine(other) as second:
        async with running([first.address]) as fleet:
            await until(lambda: states(fleet) == [SERVING])
            async with aclosing(fleet.generate(request(range(8), 2000))) as events:
                await anext(events)
                await anext(events)
                await first.stop()
                fleet.set_addresses([first.address, second.address])
                await until(lambda: states(fleet) == [UNAVAILABLE, SERVING])

                with pytest.raises(EngineError):
                    await tokens_of(events)

            assert not second.submissions
            await collect(fleet, request([1]))
        await first.start()


async def test_engine_that_comes_later_changes_nothing_but_the_longest_length():
    longer = replace(CONFIG, max_model_len=CONFIG.max_model_len + 1, eos_token_ids=(1, 2, 3))
    async with fleet_of(CONFIG) as (fleet, (first,)), FakeEngine(longer) as second:
        before = fleet.model_info("fake")
        fleet.set_addresses([second.address, first.address])
        await until(lambda: states(fleet) == [SERVING] * 2)

        assert fleet.model_info("fake") == replace(before, max_model_len=longer.max_model_len)


def _snapshot(engine, hashes, *, number, epoch=None):
    snapshot = engine_pb2.CacheSnapshot(block_hashes=hashes, first=number == 1, part_number=number)
    return engine_pb2.WatchCacheResponse(
        epoch=epoch or engine.cache.epoch, sequence_number=1, snapshot=snapshot
    )


async def _endless(engine):
    for number in range(1, 1_000_000):
        yield _snapshot(engine, range(number * 1000, number * 1000 + 1000), number=number)


async def _endless_of_nothing(engine):
    for number in range(1, 1_000_000):
        yield _snapshot(engine, [], number=number)


async def _epochs(engine):
    for number in range(1, 1_000_000):
        yield _snapshot(engine, [number], number=1, epoch=number)


async def _neither(engine):
    yield engine_pb2.WatchCacheResponse(epoch=engine.cache.epoch, sequence_number=1)
    await asyncio.Event().wait()


async def _gaps(engine):
    empty = engine_pb2.CacheSnapshot(first=True, last=True, part_number=1)
    epoch = engine.cache.epoch
    yield engine_pb2.WatchCacheResponse(epoch=epoch, sequence_number=0, snapshot=empty)
    delta = engine_pb2.CacheDelta(stored_block_hashes=[1, 2, 3])
    yield engine_pb2.WatchCacheResponse(epoch=epoch, sequence_number=5, delta=delta)
    await asyncio.Event().wait()


@pytest.mark.parametrize("told", [_endless, _endless_of_nothing, _epochs, _neither, _gaps])
async def test_nonsense_about_a_cache_is_bounded_and_asked_for_less_and_less_often(told):
    class Odd(FakeEngine):
        num_told = 0

        async def WatchCache(self, request, context):
            self.num_watches += 1
            async for message in told(self):
                self.num_told += 1
                yield message

    config = replace(CONFIG, num_blocks=3500)
    async with (
        Odd(config) as odd,
        FakeEngine(CONFIG) as good,
        running([odd.address, good.address]) as fleet,
    ):
        await until(lambda: states(fleet) == [SERVING] * 2)
        await until(lambda: odd.num_watches >= 4)
        seconds = 1.0
        num_before = odd.num_watches
        await asyncio.sleep(seconds)

        # At first it is asked after 0.01 s again; the longest wait here is 0.75 s.
        assert odd.num_watches - num_before < 0.1 * seconds / 0.01
        assert fleet.engines()[0].num_indexed_blocks <= config.num_blocks
        assert fleet.statistics().index.num_entries <= config.num_blocks + CONFIG.num_blocks
        assert states(fleet) == [SERVING] * 2
        for n in range(4):
            _, tokens, _ = await collect(fleet, request([n]))
            assert tokens == expected_tokens([n], 8)


@pytest.mark.parametrize(
    "reason", [Reason.TOKEN_OUT_OF_RANGE, Reason.EMPTY_PROMPT, Reason.PROMPT_TOO_LONG]
)
async def test_engine_that_refuses_what_the_router_checked_is_left(reason):
    async with fleet_of(CONFIG, CONFIG, placement="round_robin") as (fleet, engines):
        engines[0].refuse(reason)
        for n in range(4):
            admitted, tokens, _ = await collect(fleet, request([n]))
            assert admitted.engine == engines[1].address
            assert tokens == expected_tokens([n], 8)

        engines[1].refuse(reason)
        with pytest.raises(EngineError, match="refused what the router sent") as raised:
            await collect(fleet, request([1]))
        assert raised.value.status.code == code_number(grpc.StatusCode.UNAVAILABLE)


async def test_client_is_not_blamed_when_its_request_cannot_go_on_elsewhere(monkeypatch):
    monkeypatch.setattr(dispatcher, "_PATIENCE_SECONDS", 0.2)
    async with (
        fleet_of(SLOW, SLOW) as (fleet, engines),
        aclosing(fleet.generate(request(range(8), 2000))) as events,
    ):
        first = (await anext(events)).engine
        await anext(events)
        (other,) = (engine for engine in engines if engine.address != first)
        other.refuse(Reason.BAD_SAMPLING_PARAMS)

        next(engine for engine in engines if engine is not other).hand_back()
        next(engine for engine in engines if engine is not other).refuse(Reason.DRAINING)

        with pytest.raises(EngineError) as raised:
            await tokens_of(events)
        assert raised.value.status.code == code_number(grpc.StatusCode.UNAVAILABLE)


class Cutting(FakeEngine):
    """Breaks the stream of a router, some times, instead of admitting what comes."""

    num_cuts = 0

    async def _read(self, sink, messages):
        async def until_cut():
            async for message in messages:
                if self.num_cuts and message.submissions:
                    self.num_cuts -= 1
                    sink.closed = True
                    sink.wake()
                    return
                yield message

        await super()._read(sink, until_cut())


async def test_streams_outlive_the_loss_of_all_connections_to_engines_that_live():
    async with (
        Cutting(SLOW) as one,
        Cutting(SLOW) as two,
        running([one.address, two.address]) as fleet,
    ):
        await until(lambda: states(fleet) == [SERVING] * 2)
        async with aclosing(fleet.generate(request(range(8), 300))) as events:
            first = await anext(events)
            tokens = (await anext(events)).token_ids
            own, other = (one, two) if first.engine == one.address else (two, one)
            # What it submits next, two times there and once here, is never received.
            other.num_cuts, own.num_cuts = 2, 1
            for sink in list(own._sinks):
                sink.closed = True
                sink.wake()

            rest, _ = await asyncio.wait_for(tokens_of(events), 20)

        assert tokens + rest == expected_tokens(range(8), 300)
        assert one.num_cuts + two.num_cuts < 3


async def test_request_without_a_token_outlives_it_too():
    async with (
        Cutting(SLOW) as one,
        Cutting(SLOW) as two,
        running([one.address, two.address]) as fleet,
    ):
        await until(lambda: states(fleet) == [SERVING] * 2)
        one.num_cuts = two.num_cuts = 1

        _, tokens, _ = await collect(fleet, request([1]))

        assert tokens == expected_tokens([1], 8)
        assert one.num_cuts == two.num_cuts == 0
