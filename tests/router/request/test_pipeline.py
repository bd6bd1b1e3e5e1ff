import asyncio
from array import array
from dataclasses import replace

import pytest

from protos.wire.sampling_params import Grammar, SamplingParams
from protos.wire.status import ErrorStatus, Reason, error_status
from router.errors import (
    EngineError,
    InvalidRequest,
    NoEngine,
    NoTokenizer,
    TokenizerFailed,
    UnknownModel,
)
from router.request.pipeline import Pipeline
from router.text import detokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import Admitted, FinishReason, Tokens
from router.types.generation import Admission, Finish
from router.types.prompts import ChatMessage, ChatPrompt, TextPrompt
from tests.fakes import byte_fallback, small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, ENGINE, FakeFleet, model_info
from tests.router.pipelines import (
    BOUNDS,
    INFINITY,
    NAN,
    TEXT,
    TOKENIZER,
    chat,
    collect,
    request,
    tokens,
)


async def test_text_goes_out_as_tokens_and_comes_back_as_text(pipeline, fleet):
    token_ids = TOKENIZER.encode_text("Grüße 😀").tolist()
    fleet.answer(token_ids[:1], token_ids[1:])

    deltas = await collect(pipeline, request(sampling_params=SamplingParams(seed=7)))

    (sent,) = fleet.requests
    assert sent.prompt_token_ids == TOKENIZER.encode_text(TEXT.text)
    assert (sent.request_id, sent.model) == ("mine", "small")
    assert sent.sampling_params == SamplingParams(seed=7)
    assert "".join(delta.text for delta in deltas) == "Grüße 😀"
    assert [token for delta in deltas for token in delta.token_ids] == token_ids
    assert deltas[0].admission == Admission(
        request_id="mine",
        model="small",
        engine=ENGINE,
        num_prompt_tokens=len(sent.prompt_token_ids),
        num_cached_tokens=16,
        seed=7,
        prompt_token_ids=sent.prompt_token_ids,
    )
    assert deltas[-1].finish == Finish(
        reason=FinishReason.LENGTH,
        stop_token_id=None,
        num_prompt_tokens=len(sent.prompt_token_ids),
        num_completion_tokens=len(token_ids),
    )


async def test_chat_goes_out_laid_out_by_the_template(pipeline, fleet):
    messages = (ChatMessage(role="user", content="introduce yourself"),)
    fleet.answer([5])

    await collect(pipeline, request(ChatPrompt(messages=messages)))

    expected = TOKENIZER.encode_rendered(small_tokenizer.lay_out(messages), "")
    assert fleet.requests[0].prompt_token_ids == expected


async def test_tokens_go_out_as_they_came(pipeline, fleet):
    fleet.answer([5])

    await collect(pipeline, request(tokens(599, 0, 3), model=""))

    assert fleet.requests[0].prompt_token_ids == array("i", [599, 0, 3])
    assert fleet.requests[0].model == "small"


async def test_request_without_a_name_gets_one(pipeline, fleet):
    fleet.answer([5])

    deltas = await collect(pipeline, request(request_id=""))

    assert deltas[0].admission.request_id == fleet.requests[0].request_id != ""


async def test_labels_priority_and_trace_context_are_passed_on(pipeline, fleet):
    fleet.answer([5])
    labels = {"priority": -3, "cache_salt": "s", "traceparent": "00-1", "tracestate": "a=b"}

    await collect(pipeline, request(**labels))

    sent = fleet.requests[0]
    assert {name: getattr(sent, name) for name in labels} == labels


async def test_engine_gets_what_is_left_of_the_deadline(pipeline, fleet):
    fleet.answer([5])
    fleet.answer([5])

    await collect(pipeline, request(timeout=60.0))
    await collect(pipeline, request(timeout=None))

    assert 0 < fleet.requests[0].timeout < 60
    assert fleet.requests[1].timeout is None


@pytest.mark.parametrize(
    ("params", "stop_token_id"),
    [
        (SamplingParams(stop_token_ids=(70,)), 70),
        (SamplingParams(stop_token_ids=(70,), ignore_eos=True), 70),
        (SamplingParams(), 69),
        (SamplingParams(ignore_eos=True, grammar=Grammar(form="json_object")), 69),
    ],
)
async def test_token_that_ends_a_request_is_sent_but_no_text(params, stop_token_id, observer):
    # 69 and 70 are ordinary letters, which would be text.
    info = model_info(eos_token_ids=frozenset({69}), supported_params=ALL_PARAMS)
    fleet = FakeFleet(info)
    fleet.answer([80, 81], [82, stop_token_id], stop_token_id=stop_token_id)

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, BOUNDS)
        deltas = await collect(pipeline, request(sampling_params=params))

    text = "".join(delta.text for delta in deltas)
    assert text == TOKENIZER.decode([80, 81, 82], skip_special_tokens=True)
    assert deltas[-2].token_ids == (82, stop_token_id)
    assert deltas[-1].finish.stop_token_id == stop_token_id
    assert deltas[-1].finish.num_completion_tokens == 4


async def test_ignored_end_of_sequence_is_text_like_any_token(observer):
    fleet = FakeFleet(model_info(eos_token_ids=frozenset({69})))
    fleet.answer([80, 69], [81])

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, BOUNDS)
        deltas = await collect(pipeline, request(sampling_params=SamplingParams(ignore_eos=True)))

    text = "".join(delta.text for delta in deltas)
    assert text == TOKENIZER.decode([80, 69, 81], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (TextPrompt(text="a"), " world"),
        (tokens(259), " world"),
        (chat(("user", "a")), "world"),
        (
            replace(chat(("user", "a"), ("assistant", "a")), continue_final_message=True),
            " world",
        ),
    ],
)
async def test_completion_goes_on_from_its_prompt_and_a_chat_s_answer_stands_by_itself(
    observer, prompt, text
):
    fleet = FakeFleet()
    # Its decoder drops the space at the beginning of a text.
    fleet.files = byte_fallback.files("llama")
    fleet.answer([byte_fallback.WORD])

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        deltas = await collect(Pipeline(fleet, tokenizers, observer, BOUNDS), request(prompt))

    assert "".join(delta.text for delta in deltas) == text


async def test_incomplete_character_comes_with_the_finish(pipeline, fleet):
    byte_ids = [TOKENIZER.backend.encode("😀").ids[0]]
    if TOKENIZER.token_bytes[byte_ids[0]] == "😀".encode():
        byte_ids = [TOKENIZER.backend.token_to_id("ð")]
    fleet.answer(byte_ids)

    deltas = await collect(pipeline, request())

    assert [delta.text for delta in deltas] == ["", "", "\N{REPLACEMENT CHARACTER}"]


async def test_tokens_go_without_text_while_the_tokenizer_cannot_be_had(observer):
    fleet = FakeFleet()
    fleet.answer([80, 81])

    async def fetch(model):
        raise EngineError(error_status(Reason.ENGINE_FAILED, "none came", domain="e"))

    with TokenizerPool(fetch, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, BOUNDS)
        deltas = await collect(pipeline, request(tokens(1, 2)))
        with pytest.raises(EngineError, match="none came"):
            await collect(pipeline, request())

    assert [delta.token_ids for delta in deltas[:2]] == [(), (80, 81)]
    assert not any(delta.text for delta in deltas)


@pytest.mark.parametrize("method", ["push", "flush"])
async def test_panic_of_a_decoder_ends_its_request_with_a_reason(
    method, pipeline, fleet, monkeypatch
):
    class Panic(BaseException):
        pass

    class Panicking(detokenizer.ByteLevelDetokenizer):
        pass

    def panic(*arguments):
        raise Panic("of Rust")

    setattr(Panicking, method, panic)
    fleet.answer([80, 81])
    monkeypatch.setattr(detokenizer, "start", lambda *_, **__: Panicking(TOKENIZER.token_bytes))

    with pytest.raises(TokenizerFailed, match="of Rust") as raised:
        await collect(pipeline, request())

    assert raised.value.status.reason == Reason.INTERNAL
    assert not fleet.num_open


async def test_model_without_tokenizer_takes_and_gives_tokens(observer):
    fleet = FakeFleet(model_info(tokenizer_sha256=""))
    fleet.answer([80, 81])

    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(fleet, tokenizers, observer, BOUNDS)
        deltas = await collect(pipeline, request(tokens(1, 2)))
        with pytest.raises(NoTokenizer, match="send token_ids"):
            await collect(pipeline, request())

    assert [(delta.text, delta.token_ids) for delta in deltas] == [
        ("", ()),
        ("", (80, 81)),
        ("", ()),
    ]


def sampling(**params):
    return {"sampling_params": SamplingParams(**params)}


@pytest.mark.parametrize(
    "case",
    [
        ({"prompt": TextPrompt(text="")}, "EMPTY_PROMPT", "text is empty"),
        ({"prompt": tokens()}, "EMPTY_PROMPT", "the prompt has no tokens"),
        (
            {"prompt": TextPrompt(text="x" * 10_000_000)},
            "PROMPT_TOO_LONG",
            "text has 10000000 bytes, over max_prompt_bytes 1000",
        ),
        (
            {"prompt": chat(("user", "é" * 300), ("user", "é" * 201))},
            "PROMPT_TOO_LONG",
            "chat.messages has 1002 bytes, over max_prompt_bytes 1000",
        ),
        (
            {"prompt": tokens(*[1] * 128)},
            "PROMPT_TOO_LONG",
            "prompt of 128 tokens and one to generate are 129 tokens, over max_model_len 128",
        ),
        (
            {"prompt": TextPrompt(text="q z " * 120)},
            "PROMPT_TOO_LONG",
            "and one to generate are .* tokens, over max_model_len 128",
        ),
        (
            {"prompt": tokens(*[1] * 100), **sampling(max_tokens=29)},
            "PROMPT_TOO_LONG",
            "prompt of 100 tokens and max_tokens of 29 are 129 tokens, over max_model_len 128",
        ),
        (
            {"prompt": tokens(1, 600, 2**32 - 1)},
            "TOKEN_OUT_OF_RANGE",
            r"token_ids\[1\] is 600, outside 0 to 599",
        ),
        (
            sampling(stop_token_ids=(3, 2**32 - 1)),
            "TOKEN_OUT_OF_RANGE",
            r"stop_token_ids\[1\] is 4294967295, outside 0 to 599",
        ),
        (
            sampling(stop_token_ids=(3,) * 10_000),
            "BAD_SAMPLING_PARAMS",
            "stop_token_ids has 10000 entries, outside 0 to 1024",
        ),
        (
            sampling(temperature=-0.5),
            "BAD_SAMPLING_PARAMS",
            "temperature is -0.5, outside 0 to 100",
        ),
        (sampling(temperature=NAN), "BAD_SAMPLING_PARAMS", "temperature is NaN, outside 0 to 100"),
        (sampling(temperature=INFINITY), "BAD_SAMPLING_PARAMS", "temperature is inf, outside"),
        (
            sampling(max_tokens=0),
            "BAD_SAMPLING_PARAMS",
            "max_tokens is 0, outside 1 and more; 0 needs prompt_logprobs",
        ),
        (
            sampling(seed=-1),
            "BAD_SAMPLING_PARAMS",
            "seed is -1, outside 0 to 9223372036854775807",
        ),
        (
            {"request_id": "x" * 257},
            "BAD_REQUEST",
            "request_id has 257 characters, outside 0 to 256",
        ),
        ({"request_id": "a\nb"}, "BAD_REQUEST", r"request_id contains \\n; it must be printable"),
        (
            {"request_id": "a\x9bb\x1b"},
            "BAD_REQUEST",
            r"request_id contains \\x9b; it must be printable",
        ),
        (
            {"request_id": "\u2028"},
            "BAD_REQUEST",
            r"request_id contains \\u2028; it must be printable",
        ),
        (
            {"cache_salt": "x" * 257},
            "BAD_REQUEST",
            "cache_salt has 257 characters, outside 0 to 256",
        ),
        (
            {"prompt": chat()},
            "BAD_CHAT",
            "chat.messages has 0 entries, outside 1 to 4096",
        ),
        (
            {"prompt": chat(*[("user", "")] * 4097)},
            "BAD_CHAT",
            "chat.messages has 4097 entries, outside 1 to 4096",
        ),
        (
            {"prompt": chat(("user", "a"), ("pirate" * 20_000, "b"))},
            "BAD_CHAT",
            r"chat.messages\[1\].role is 'pirate.*'; it must be one of system, developer, user",
        ),
        (
            {"prompt": chat(("tool", "a"))},
            "BAD_CHAT",
            "chat.messages with roles tool: .* rejected them: tools are not supported",
        ),
    ],
)
async def test_bad_input_is_refused_by_name_before_any_engine_hears_of_it(
    pipeline, fleet, observer, case
):
    changes, reason, message = case
    with pytest.raises(InvalidRequest, match=message) as caught:
        await collect(pipeline, request(**changes))

    assert caught.value.status.reason == reason
    assert caught.value.status.domain == "pagestream.router.v1"
    # gRPC carries status and details in headers, which are a few kilobytes.
    assert len(caught.value.status.message) < 1000
    assert fleet.requests == []
    assert observer.calls[-1] == ("ended", reason.lower())

    fleet.answer([80])
    assert (await collect(pipeline, request()))[-1].finish


async def test_what_is_wrong_in_itself_is_refused_before_tokenization(pipeline, fleet, observer):
    with pytest.raises(InvalidRequest):
        await collect(pipeline, request(**sampling(temperature=-1)))

    assert "tokenized" not in observer.names
    assert fleet.num_fetches == 0


async def test_longest_prompt_that_fits_is_taken(pipeline, fleet):
    fleet.answer([80])

    await collect(pipeline, request(tokens(*[1] * 100), **sampling(max_tokens=28)))

    assert len(fleet.requests) == 1


@pytest.mark.parametrize(
    ("num_prompt_tokens", "asked", "sent"), [(100, 27, 27), (100, 29, 28), (127, 1000, 1)]
)
async def test_max_tokens_is_lowered_to_the_room_where_the_client_wants_it(
    num_prompt_tokens, asked, sent, pipeline, fleet
):
    fleet.answer([80])
    prompt = tokens(*[1] * num_prompt_tokens)

    await collect(pipeline, request(prompt, fits_max_tokens=True, **sampling(max_tokens=asked)))

    assert fleet.requests[0].sampling_params.max_tokens == sent


async def test_prompt_without_room_is_refused_whatever_max_tokens_may_become(pipeline):
    fields = {"fits_max_tokens": True, **sampling(max_tokens=5)}
    with pytest.raises(InvalidRequest, match="prompt of 128 tokens and one to generate"):
        await collect(pipeline, request(tokens(*[1] * 128), **fields))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (EngineError(ErrorStatus(code=14, message="", reason="ENGINE_FAILED")), "engine_failed"),
        (EngineError(ErrorStatus(code=14, message="", reason="NEW_REASON")), "other"),
        (EngineError(ErrorStatus(code=14, message="")), "other"),
        (NoEngine("none", retry_after=1.0), "no_engine"),
        (ValueError("a bug"), "internal"),
    ],
)
async def test_error_on_the_way_is_the_requests_outcome(pipeline, fleet, observer, error, outcome):
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1), error)

    with pytest.raises(type(error)):
        await collect(pipeline, request())

    assert observer.calls[-1] == ("ended", outcome)
    assert fleet.num_open == 0


async def test_unknown_model_is_named(pipeline, observer):
    with pytest.raises(UnknownModel, match='"other"'):
        await collect(pipeline, request(model="other"))

    assert observer.calls == [("started",), ("ended", "unknown_model")]
    assert observer.models == [None]


async def test_observer_hears_of_each_stage(pipeline, fleet, observer):
    fleet.answer([80], [81, 82])

    deltas = await collect(pipeline, request())

    assert observer.calls == [
        ("started",),
        ("tokenized",),
        ("handed_over", deltas[0].admission.num_prompt_tokens),
        ("generated", 1, True),
        ("generated", 2, False),
        ("ended", "length"),
    ]


async def test_closing_the_answer_cancels_it_at_the_engine(pipeline, fleet, observer):
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1), Tokens(token_ids=[80]))
    deltas = pipeline.generate(request())
    await anext(deltas)
    await anext(deltas)

    await deltas.aclose()

    assert fleet.num_open == 0
    assert observer.calls[-1] == ("ended", "cancelled")
    await asyncio.wait_for(pipeline.wait_idle(), 10)


@pytest.mark.parametrize(("limit", "outcome"), [(60.0, "cancelled"), (0.0, "deadline_exceeded")])
async def test_cancelled_wait_reaches_the_engine_and_is_told_from_a_deadline(
    pipeline, fleet, observer, limit, outcome
):
    fleet.put(Admitted(engine=ENGINE, num_cached_tokens=0, seed=1))
    deltas = pipeline.generate(request(timeout=limit))
    await anext(deltas)
    waiting = asyncio.ensure_future(anext(deltas))
    await asyncio.sleep(0)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert fleet.num_open == 0
    assert observer.calls[-1] == ("ended", outcome)


async def test_leaving_after_the_finish_is_no_cancellation(pipeline, fleet, observer):
    fleet.answer([80])
    deltas = pipeline.generate(request())
    while not (await anext(deltas)).finish:
        pass

    await deltas.aclose()

    assert observer.calls[-1] == ("ended", "length")
