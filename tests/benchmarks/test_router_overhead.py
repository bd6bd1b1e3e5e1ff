import asyncio
import random

import pytest
import tokenizers

from benchmarks.router import large_tokenizer
from benchmarks.router.added_time import quantile
from benchmarks.router.connections import Call, sse_events
from benchmarks.router.lean_engine import LeanEngine
from benchmarks.router.overhead_table import table
from benchmarks.router.stream_client import Target, run, text_prompt
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import FakeEngineConfig
from tests.router import fleets
from tests.router.http.serving import serving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return large_tokenizer.save(tmp_path_factory.mktemp("tokenizer"))


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


async def test_client_counts_each_token_over_http(checkpoint):
    engine = LeanEngine(config(decode_step_seconds=0.01, tokenizer=checkpoint))
    async with engine, fleets.running([engine.address]) as fleet:
        await fleets.until(lambda: fleets.states(fleet) == [EngineState.SERVING])
        async with serving(fleet) as port:
            target = Target("http", "text", 16, max_tokens=5)
            result = await asyncio.to_thread(run, target, f"127.0.0.1:{port}", 3, 2, 2)

    assert result["num_tokens"] == 15
    assert 3 <= result["num_messages"] <= 15
    assert len(result["first_token_s"]) == 3


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


def test_large_tokenizer_has_words_where_the_engine_draws(checkpoint):
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    assert tokenizer.get_vocab_size() == large_tokenizer.VOCAB_SIZE
    drawn = random.Random(0).choices(large_tokenizer.WORD_IDS, k=200)
    text = tokenizer.decode(drawn)
    assert text.count(" ") == len(drawn)
    assert len(tokenizer.encode(text_prompt(random.Random(0), 128)).ids) > 100


def test_quantile_is_a_value_of_the_sample():
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 2.0, 3.0]


def added(milliseconds):
    return {"added_to_first_token_ms": {"median": milliseconds}}


def test_table_has_what_was_measured_with_ratios_to_the_peer():
    results = {
        "added_time": [
            {
                "concurrency": 1,
                "ways": {
                    "engine": {},
                    "router, gRPC, prompt of tokens": added(0.1),
                    "router, HTTP, prompt of text": added(0.6),
                    "smg, HTTP, prompt of text": added(0.3),
                },
            },
            {
                "concurrency": 64,
                "ways": {
                    "router, HTTP, prompt of text": added(2.0),
                    "smg, HTTP, prompt of text": added(-1.0),
                },
            },
        ],
        "throughput": [
            {
                "way": "router, HTTP",
                "tokens_per_message": 16,
                "highest_rate_held_tokens_per_s": None,
            },
            {
                "way": "smg, HTTP",
                "tokens_per_message": 16,
                "highest_rate_held_tokens_per_s": 250_000,
            },
        ],
        "requests": {
            "cpu_us_per_request": {
                "router, HTTP": {"median": 500.0},
                "smg, HTTP": {"median": 200.0},
            }
        },
    }

    assert table(results, ["http", "smg"]).splitlines() == [
        "|  | ms to the first token, 1 at once | ms to the first token, 64 at once | us a request "
        "| tokens/s, 16 a message |",
        "| --- | --- | --- | --- | --- |",
        "| router, HTTP | 0.6 (2.00) | 2.0 | 500.0 (2.50) |  |",
        "| smg, HTTP | 0.3 (1.00) | -1.0 | 200.0 (1.00) | 250,000 (1.00) |",
    ]
