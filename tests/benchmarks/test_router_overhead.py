import asyncio
import random

import pytest
import tokenizers

from benchmarks.router import large_tokenizer
from benchmarks.router.added_time import quantile
from benchmarks.router.connections import Call, sse_events
from benchmarks.router.lean_engine import LeanEngine
from benchmarks.router.stream_client import Target, run, text_prompt
from tests.fakes.fake_engine import FakeEngineConfig


def config(**fields):
    return FakeEngineConfig(vocab_size=large_tokenizer.VOCAB_SIZE, **fields)


@pytest.mark.parametrize(("tokens_per_step", "max_messages"), [(1, 15), (5, 3)])
async def test_client_counts_each_token_and_message_of_each_call(tokens_per_step, max_messages):
    engine = LeanEngine(config(decode_step_seconds=0.01), tokens_per_step=tokens_per_step)
    async with engine:
        target = Target("engine", "tokens", 16, max_tokens=5)
        result = await asyncio.to_thread(run, target, engine.address, 3, 2, 2)

    assert result["num_tokens"] == 15
    # A call that is late gets the tokens of several steps in one message.
    assert 3 <= result["num_messages"] <= max_messages
    assert len(result["first_token_s"]) == 3
    pairs = zip(result["first_token_s"], result["total_s"], strict=True)
    assert all(0 < first <= total for first, total in pairs)


async def test_client_tells_a_call_that_failed():
    engine = LeanEngine(config(max_model_len=10))
    async with engine:
        target = Target("engine", "tokens", 16, max_tokens=5)
        with pytest.raises(ConnectionError, match="without its finish"):
            await asyncio.to_thread(run, target, engine.address, 1, 1, 1)


def test_events_may_arrive_in_pieces():
    body = (
        b'HTTP/1.1 200 OK\r\n\r\nb\r\ndata: {"a": 1}\n\n\r\nb\r\ndata: {"a": 2}\n\ndata: [DONE]\n\n'
    )
    pieces = [(float(start), body[start : start + 7]) for start in range(0, len(body), 7)]

    events = sse_events(Call(started=0.0, chunks=pieces))

    assert [event for _, event in events] == [{"a": 1}, {"a": 2}]
    assert [moment for moment, _ in events] == sorted(moment for moment, _ in events)


def test_an_answer_without_events_is_shown():
    call = Call(started=0.0, chunks=[(1.0, b"HTTP/1.1 503 Service Unavailable\r\n\r\n")])

    with pytest.raises(ConnectionError, match="503"):
        sse_events(call)


def test_large_tokenizer_has_words_where_the_engine_draws(tmp_path):
    folder = large_tokenizer.save(tmp_path)

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    assert tokenizer.get_vocab_size() == large_tokenizer.VOCAB_SIZE
    drawn = random.Random(0).choices(large_tokenizer.WORD_IDS, k=200)
    text = tokenizer.decode(drawn)
    assert text.count(" ") == len(drawn)
    assert len(tokenizer.encode(text_prompt(random.Random(0), 128)).ids) > 100


def test_quantile_is_a_value_of_the_sample():
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 2.0, 3.0]
