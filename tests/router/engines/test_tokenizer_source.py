import asyncio

import pytest

from protos.wire.status import Reason, error_status
from router.engines import tokenizer_source
from router.engines.tokenizer_source import TokenizerSource
from router.errors import DOMAIN, EngineError, EngineLost
from tests.fakes.fake_fleet import model_info

FILES = {"tokenizer.json": b"{}"}
MODEL = model_info()


def failing(reason, message="said", *, domain=DOMAIN, kind=EngineError):
    return kind(error_status(reason, message, domain=domain))


class Holder:
    """Answers with files, raises, or hangs with None; counts how often it is asked."""

    def __init__(self, answer):
        self.answer = answer
        self.num_asked = 0
        self.num_cancelled = 0

    async def get_tokenizer(self, sha256):
        assert sha256 == MODEL.tokenizer_sha256
        self.num_asked += 1
        if self.answer is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.num_cancelled += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(tokenizer_source, "_HEDGE_SECONDS", 0.01)


def source_of(**holders):
    return TokenizerSource(lambda sha256: holders if sha256 == MODEL.tokenizer_sha256 else {})


async def fetch(source):
    async with asyncio.timeout(10):
        return await source.fetch(MODEL)


async def test_engine_that_hangs_holds_nobody_up_and_is_asked_last_from_then_on():
    hanging, good = Holder(None), Holder(FILES)
    source = source_of(a=hanging, b=good)

    assert await fetch(source) == FILES
    assert await fetch(source) == FILES

    assert (hanging.num_asked, good.num_asked) == (1, 2)
    assert hanging.num_cancelled == 1


async def test_engine_that_connects_while_another_hangs_is_asked():
    holders = {"a": Holder(None)}
    source = TokenizerSource(lambda sha256: holders)
    waiting = asyncio.ensure_future(fetch(source))
    await asyncio.sleep(0)

    holders["b"] = Holder(FILES)

    assert await waiting == FILES


async def test_late_answer_is_taken_when_the_other_engine_fails():
    class Late(Holder):
        async def get_tokenizer(self, sha256):
            await other.is_asked.wait()
            return FILES

    class Failing(Holder):
        is_asked = asyncio.Event()

        async def get_tokenizer(self, sha256):
            self.is_asked.set()
            return await super().get_tokenizer(sha256)

    other = Failing(failing(Reason.INTERNAL))

    assert await fetch(source_of(a=Late(FILES), b=other)) == FILES


@pytest.mark.parametrize(
    "error", [failing(Reason.INTERNAL), failing(Reason.ENGINE_FAILED), ValueError("odd")]
)
async def test_engine_that_sent_other_files_rests_and_another_is_asked(error):
    lying, good = Holder(error), Holder(FILES)
    source = source_of(a=lying, b=good)

    for _ in range(3):
        assert await fetch(source) == FILES

    assert (lying.num_asked, good.num_asked) == (1, 3)


async def test_engine_that_rests_is_asked_again_later(monkeypatch):
    engine = Holder(failing(Reason.INTERNAL, "other files"))
    source = source_of(a=engine)
    for _ in range(3):
        with pytest.raises(EngineError, match="other files"):
            await fetch(source)
    assert engine.num_asked == 1
    loop = asyncio.get_running_loop()
    later = loop.time() + tokenizer_source._REST_SECONDS
    monkeypatch.setattr(loop, "time", lambda: later)

    engine.answer = FILES

    assert await source.fetch(MODEL) == FILES


async def test_engine_that_is_lost_during_the_transfer_is_asked_when_it_is_back():
    engine = Holder(failing(Reason.ENGINE_FAILED, kind=EngineLost))
    source = source_of(a=engine)
    with pytest.raises(EngineLost):
        await fetch(source)

    engine.answer = FILES

    assert await fetch(source) == FILES


async def test_engine_s_refusal_is_no_answer_to_a_client_s_request():
    refusing = Holder(failing(Reason.BAD_REQUEST, "bad", domain="pagestream.engine.v1"))

    with pytest.raises(EngineError, match="engine a did not send its tokenizer: bad") as raised:
        await fetch(source_of(a=refusing))

    assert raised.value.status.reason == Reason.ENGINE_FAILED


async def test_no_engine_of_the_digest_is_an_error_that_names_the_model():
    with pytest.raises(EngineError, match='tokenizer of model "small" is connected'):
        await fetch(source_of())


async def test_asker_that_leaves_leaves_no_transfer_behind():
    hanging = Holder(None)
    waiting = asyncio.ensure_future(fetch(source_of(a=hanging)))
    while not hanging.num_asked:  # noqa: ASYNC110
        await asyncio.sleep(0)

    waiting.cancel()

    await asyncio.wait([waiting])
    assert hanging.num_cancelled == 1
