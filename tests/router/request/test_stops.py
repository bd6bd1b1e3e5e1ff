"""Stop texts end a request before its engine does, wherever tokens and failures split them."""

import asyncio
import threading
from array import array
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.wire.sampling_params import SamplingParams
from router.request.answer import Answer
from router.request.pipeline import Pipeline
from router.text.stop_texts import StopSearch, StopTexts
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import (
    Admitted,
    Finished,
    FinishReason,
    TokenLogprobs,
    TokenRequest,
    Tokens,
)
from router.types.generation import Finish
from tests.fakes import byte_fallback, small_tokenizer
from tests.fakes.fake_engine import expected_tokens
from tests.fakes.fake_fleet import ENGINE, model_info
from tests.router.fleets import SLOW, TIMEOUT, fleet_of, until
from tests.router.pipelines import (
    BOUNDS,
    TOKENIZER,
    Recorder,
    collect,
    fleet_without_chats,
    request,
    tokens,
)
from tests.router.text.test_stop_texts import cut

ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=0, seed=7)
LLAMA = Tokenizer.from_files(byte_fallback.files("llama"))


@pytest.fixture
def fleet():
    return fleet_without_chats()


def byte_tokens(text):
    """Returns a token for each byte, so that every character is split wherever it can be."""
    by_bytes = {TOKENIZER.token_bytes[token_id]: token_id for token_id in range(2, 300)}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def answer_to(chunks, stops, *, tokenizer=TOKENIZER, is_included=False, **params):
    """Returns what a client gets for chunks of tokens, up to the finish."""
    asked = TokenRequest(
        request_id="r",
        model="small",
        prompt_token_ids=array("i"),
        sampling_params=SamplingParams(**params),
    )
    search = StopSearch(StopTexts(stops), is_included=is_included)
    answer = Answer(asked, model_info(), tokenizer, stop_search=search)
    deltas = []
    for event in (*(Tokens(token_ids=c) for c in chunks), Finished(reason=FinishReason.LENGTH)):
        deltas.append(answer.delta(event))
        if deltas[-1].finish:
            break
    return deltas


def joined(deltas):
    return "".join(delta.text for delta in deltas)


@given(
    text=st.text("aéß😀b", max_size=12),
    stops=st.sets(st.text("aéß😀b", min_size=1, max_size=3), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 5), min_size=1),
    is_included=st.booleans(),
    min_tokens=st.integers(0, 10),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_text_split_at_any_byte_ends_at_the_first_stop(text, stops, sizes, is_included, min_tokens):
    token_ids = byte_tokens(text)
    chunks, rest = [], list(token_ids)
    for size in sizes * len(token_ids):
        chunks += [rest[:size]] if rest else []
        rest = rest[size:]
    # The first min_tokens bytes are those of so many characters.
    num_early = len(text.encode()[:min_tokens].decode(errors="ignore"))
    expected, stop = cut(text, stops, is_included=is_included, first_end=num_early + 1)

    deltas = answer_to(chunks, stops, is_included=is_included, min_tokens=min_tokens)

    assert joined(deltas) == expected
    finish = deltas[-1].finish
    assert finish.stop_text == stop
    assert finish.reason is (FinishReason.STOP if stop else FinishReason.LENGTH)
    delivered = [token_id for delta in deltas for token_id in delta.token_ids]
    num_bytes = len(f"{expected}{'' if is_included else stop or ''}".encode())
    assert delivered == token_ids[: num_bytes if stop else None]
    assert finish.num_completion_tokens == len(delivered)


@given(st.lists(st.sampled_from([259, *range(3, 7), 260, 261]), max_size=12), st.data())
def test_vocabulary_with_byte_fallback_ends_at_the_first_stop_too(token_ids, data):
    text = LLAMA.decode(token_ids, skip_special_tokens=True)
    stop = data.draw(st.sampled_from([text[i : i + 3] or "x" for i in range(len(text) + 1)]))

    whole = answer_to([token_ids] if token_ids else [], {stop}, tokenizer=LLAMA)
    single = answer_to([[token_id] for token_id in token_ids], {stop}, tokenizer=LLAMA)

    assert joined(whole) == joined(single) == cut(text, {stop})[0]


async def test_engine_is_left_before_the_client_hears_of_the_stop(pipeline, fleet, observer):
    token_ids = TOKENIZER.encode_text("the quick brown fox").tolist()
    fleet.put(ADMITTED, *(Tokens(token_ids=[token_id]) for token_id in token_ids))
    deltas = pipeline.generate(request(stop=("quick",)))

    async with asyncio.timeout(TIMEOUT):
        received = [await anext(deltas)]
        while not received[-1].finish:
            received.append(await anext(deltas))
        assert fleet.num_open == 0
        assert [delta async for delta in deltas] == []

    assert joined(received) == "the "
    num_tokens = len(received) - 1
    assert received[-1].finish == Finish(
        reason=FinishReason.STOP,
        stop_token_id=None,
        num_prompt_tokens=received[0].admission.num_prompt_tokens,
        num_completion_tokens=num_tokens,
        stop_text="quick",
    )
    assert [token for delta in received for token in delta.token_ids] == token_ids[:num_tokens]
    assert TOKENIZER.decode(token_ids[:num_tokens], skip_special_tokens=True) == "the quick"
    assert observer.calls[-1] == ("ended", "stop")


async def test_tokens_of_a_message_end_with_the_one_that_completes_the_stop(pipeline, fleet):
    token_ids = byte_tokens("abcdef")
    logprobs = TokenLogprobs(
        logprobs=[0.0, -1.0, -2.0, -3.0, -4.0, -5.0],
        top_token_ids=list(range(12)),
        top_logprobs=[0.5] * 12,
    )
    fleet.put(ADMITTED, Tokens(token_ids=token_ids, logprobs=logprobs))

    _, last = await collect(pipeline, request(stop=("cd",), include_stop_text=True))

    assert (last.text, last.token_ids) == ("abcd", tuple(token_ids[:4]))
    assert (last.finish.stop_text, last.finish.num_completion_tokens) == ("cd", 4)
    assert list(last.logprobs.token_ids) == token_ids[:4]
    assert last.logprobs.logprobs == TokenLogprobs(
        logprobs=[0.0, -1.0, -2.0, -3.0], top_token_ids=list(range(8)), top_logprobs=[0.5] * 8
    )


async def test_text_held_back_comes_with_the_finish(pipeline, fleet):
    fleet.answer(byte_tokens("a sto"), stop_token_id=1)

    deltas = await collect(pipeline, request(stop=("stop",)))

    assert [delta.text for delta in deltas] == ["", "a ", "sto"]
    assert deltas[1].token_ids == tuple(byte_tokens("a sto"))
    assert deltas[-1].finish.stop_token_id == 1
    assert deltas[-1].finish.stop_text is None


async def test_text_of_the_stop_token_is_not_searched(pipeline, fleet):
    # 80 is a letter, which would complete the stop text.
    letter = TOKENIZER.decode([80], skip_special_tokens=True)
    fleet.answer([81, 80], stop_token_id=80)

    deltas = await collect(
        pipeline, request(stop=(letter,), sampling_params=SamplingParams(stop_token_ids=(80,)))
    )

    assert deltas[-1].finish.stop_token_id == 80
    assert deltas[-1].finish.stop_text is None


async def test_unfinished_character_at_the_end_can_complete_a_stop(pipeline, fleet):
    fleet.answer(byte_tokens("a😀")[:3])

    deltas = await collect(pipeline, request(stop=("\N{REPLACEMENT CHARACTER}",)))

    assert joined(deltas) == "a"
    assert deltas[-1].finish.reason is FinishReason.STOP


async def test_many_stops_are_prepared_outside_of_the_event_loop(pipeline, fleet, monkeypatch):
    stops = tuple(f"{i:04}abcdefghijk" for i in range(1024))
    fleet.put(ADMITTED, Tokens(token_ids=byte_tokens("-0815abcdefghijkl")))
    threads = []
    original = StopTexts._add_texts

    def add_texts(self):
        threads.append(threading.current_thread())
        return original(self)

    monkeypatch.setattr(StopTexts, "_add_texts", add_texts)

    deltas = await collect(pipeline, request(stop=stops))

    assert joined(deltas) == "-"
    assert deltas[-1].finish.stop_text == "0815abcdefghijk"
    assert threads[0].name.startswith("tokenizer")


@pytest.mark.parametrize("num_tokens", [3, 4, 5])
async def test_stop_that_a_failure_splits_is_found(tmp_path, num_tokens):
    for name, content in small_tokenizer.files(chat_template=None).items():
        (tmp_path / name).write_bytes(content)
    config = replace(SLOW, tokenizer=tmp_path, vocab_size=500)
    token_ids = expected_tokens((5, 6, 7), 40, config=config)
    whole = TOKENIZER.decode(token_ids, skip_special_tokens=True)
    before = TOKENIZER.decode(token_ids[:num_tokens], skip_special_tokens=True)
    # It begins in the text of the tokens before the failure, and ends behind it.
    stop = whole[len(before) - 2 : len(before) + 3]
    assert stop in whole
    assert stop not in before
    async with fleet_of(config, config, placement="round_robin") as (fleet, engines):
        first, second = sorted(engines, key=lambda engine: engine.address)
        first.die_after(num_tokens)
        with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
            pipeline = Pipeline(fleet, tokenizers, Recorder(), BOUNDS)
            params = SamplingParams(temperature=0.0, max_tokens=40)
            asked = request(tokens(5, 6, 7), model="fake", sampling_params=params, stop=(stop,))
            deltas = await collect(pipeline, asked)
        await until(lambda: not second.num_running)

        assert len(first.submissions) == len(second.submissions) == 1
    assert joined(deltas) == cut(whole, {stop})[0]
    assert deltas[-1].finish.stop_text == stop
    delivered = [token_id for delta in deltas for token_id in delta.token_ids]
    assert num_tokens < len(delivered) < 40
    assert delivered == token_ids[: len(delivered)]
