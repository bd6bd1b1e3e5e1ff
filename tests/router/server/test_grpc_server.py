import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_status import rpc_status

from protos.pagestream.router.v1 import router_pb2 as pb
from protos.pagestream.router.v1 import router_pb2_grpc
from protos.wire import channel
from protos.wire.sampling_params import Grammar, LogitBias, SamplingParams
from protos.wire.status import ErrorStatus, unpack
from router.errors import EngineError, NoEngine
from router.request.pipeline import Bounds, Pipeline
from router.request.slow_readers import SlowReaders
from router.server.grpc_server import RouterServicer
from router.server.key_check import KeyCheck
from router.server.metrics import RouterMetrics
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_pool import TokenizerPool
from router.types.engine_events import (
    Admitted,
    Finished,
    FinishReason,
    PromptLogprobs,
    TokenLogprobs,
    Tokens,
)
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import ALL_PARAMS, ENGINE, FakeFleet
from tests.router.pipelines import fleet_without_chats

TOKENIZER = Tokenizer.from_files(small_tokenizer.files())
TEXT = "the quick brown fox"
ADMITTED = Admitted(engine=ENGINE, num_cached_tokens=16, seed=7)


@asynccontextmanager
async def serving(  # noqa: PLR0913
    fleet,
    *,
    max_concurrent_requests=8,
    max_queued_prompt_tokens=200,
    slow_readers=None,
    client_options=(),
    keyring=None,
):
    checks = [] if keyring is None else [KeyCheck(keyring)]
    server = grpc.aio.server(options=channel.server_options(), interceptors=checks)
    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(
            fleet,
            tokenizers,
            RouterMetrics(),
            Bounds(
                max_concurrent_requests=max_concurrent_requests,
                max_prompt_bytes=1000,
                max_request_bytes=100_000_000,
                max_queued_prompt_tokens=max_queued_prompt_tokens,
            ),
        )
        servicer = RouterServicer(pipeline, fleet, slow_readers or SlowReaders(60.0), keyring)
        router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            # Of an option that is given twice, gRPC takes the first.
            options = [*client_options, *channel.client_options()]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as client:
                yield router_pb2_grpc.RouterServiceStub(client), pipeline
        finally:
            await server.stop(None)


@pytest.fixture
def fleet():
    return FakeFleet()


@pytest.fixture
async def service(fleet):
    async with serving(fleet) as (stub, _):
        yield stub


async def read_to_end(call):
    if isinstance(call, grpc.aio.UnaryStreamCall):
        async for _ in call:
            pass
    else:
        await call


async def refusal(call) -> tuple[grpc.StatusCode, ErrorStatus]:
    """Reads a call to its end, which is an error, and returns that."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_to_end(call)
    status = rpc_status.from_call(caught.value)
    return caught.value.code(), unpack(status.code, status.message, status.details)


async def test_answer_streams_admission_text_tokens_and_finish(service, fleet):
    token_ids = TOKENIZER.encode_text("Grüße 😀").tolist()
    fleet.answer(token_ids[:1], token_ids[1:])

    call = service.Generate(pb.GenerateRequest(request_id="mine", text=TEXT), timeout=10)
    first, *middle, last = [message async for message in call]

    num_prompt = len(TOKENIZER.encode_text(TEXT))
    assert first == pb.GenerateResponse(
        admission=pb.Admission(
            request_id="mine",
            model="small",
            engine=ENGINE,
            prompt_token_count=num_prompt,
            cached_token_count=16,
            seed=7,
        )
    )
    assert "".join(message.text for message in middle) == "Grüße 😀"
    assert [token for message in middle for token in message.token_ids] == token_ids
    assert last == pb.GenerateResponse(
        finish=pb.Finish(
            reason=pb.FINISH_REASON_LENGTH,
            prompt_token_count=num_prompt,
            completion_token_count=len(token_ids),
        )
    )


async def test_token_that_ended_a_request_is_named(service, fleet):
    fleet.answer([80, 1], stop_token_id=1)

    *_, last = [m async for m in service.Generate(pb.GenerateRequest(text=TEXT), timeout=10)]

    assert last.finish.reason == pb.FINISH_REASON_STOP
    assert last.finish.stop_token_id == 1


def params(**values) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=TEXT, sampling_params=pb.SamplingParams(**values))


def chat(*messages) -> pb.GenerateRequest:
    parts = [pb.ChatMessage(role=role, content=content) for role, content in messages]
    return pb.GenerateRequest(chat=pb.Chat(messages=parts))


@pytest.mark.parametrize(
    ("request_", "code", "reason", "message"),
    [
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "EMPTY_PROMPT", "text, chat, token_ids"),
        (pb.GenerateRequest(text=""), "INVALID_ARGUMENT", "EMPTY_PROMPT", "text is empty"),
        (
            pb.GenerateRequest(text="x" * 5_000_000),
            "INVALID_ARGUMENT",
            "PROMPT_TOO_LONG",
            "5000000 bytes, over max_prompt_bytes 1000",
        ),
        (
            pb.GenerateRequest(token_ids=pb.TokenIds(ids=[600])),
            "INVALID_ARGUMENT",
            "TOKEN_OUT_OF_RANGE",
            "token_ids[0] is 600, outside 0 to 599",
        ),
        (params(max_tokens=200), "INVALID_ARGUMENT", "PROMPT_TOO_LONG", "max_tokens of 200"),
        (params(temperature=-1), "INVALID_ARGUMENT", "BAD_SAMPLING_PARAMS", "temperature is -1,"),
        (
            params(temperature=100.00001),
            "INVALID_ARGUMENT",
            "BAD_SAMPLING_PARAMS",
            "temperature is 100.00001, outside 0 to 100",
        ),
        (
            params(temperature=float("nan")),
            "INVALID_ARGUMENT",
            "BAD_SAMPLING_PARAMS",
            "temperature is NaN",
        ),
        (params(seed=-1), "INVALID_ARGUMENT", "BAD_SAMPLING_PARAMS", "seed is -1, outside 0 to"),
        (params(max_tokens=0), "INVALID_ARGUMENT", "BAD_SAMPLING_PARAMS", "max_tokens is 0"),
        (
            params(stop_token_ids=[1] * 10_000),
            "INVALID_ARGUMENT",
            "BAD_SAMPLING_PARAMS",
            "stop_token_ids has 10000 entries, outside 0 to 1024",
        ),
        (
            params(stop=["a", ""]),
            "INVALID_ARGUMENT",
            "BAD_SAMPLING_PARAMS",
            "stop[1] is empty",
        ),
        (params(n=2), "INVALID_ARGUMENT", "UNSUPPORTED_PARAMETER", "n is 2"),
        (params(n=0), "INVALID_ARGUMENT", "BAD_SAMPLING_PARAMS", "n is 0, outside 1 to 128"),
        (
            params(stop=["a"] * 10_000),
            "INVALID_ARGUMENT",
            "BAD_SAMPLING_PARAMS",
            "stop has 10000 texts, outside 0 to 1024",
        ),
        (chat(("pirate", "a")), "INVALID_ARGUMENT", "BAD_CHAT", "role is 'pirate'"),
        (chat(("tool", "a")), "INVALID_ARGUMENT", "BAD_CHAT", "tools are not supported"),
        (chat(), "INVALID_ARGUMENT", "BAD_CHAT", "chat.messages has 0 entries"),
        (pb.GenerateRequest(model="m" * 9, text="a"), "NOT_FOUND", "UNKNOWN_MODEL", '"mmmmmmmmm"'),
    ],
)
async def test_bad_input_ends_in_a_status_that_names_it(fleet, request_, code, reason, message):
    async with serving(fleet) as (service, _):
        got, error = await refusal(service.Generate(request_, timeout=10))

        assert (got.name, error.reason, error.domain) == (code, reason, "pagestream.router.v1")
        assert message in error.message
        assert fleet.requests == []
        fleet.answer([80])
        again = service.Generate(pb.GenerateRequest(text=TEXT), timeout=10)
        assert [m async for m in again][-1].HasField("finish")


async def test_error_after_tokens_were_sent_ends_the_stream(service, fleet):
    failure = ErrorStatus(
        code=14,
        message="engine lost",
        reason="ENGINE_FAILED",
        domain="pagestream.engine.v1",
        metadata={"engine": ENGINE},
    )
    fleet.put(ADMITTED, Tokens(token_ids=[80]), EngineError(failure))

    code, error = await refusal(service.Generate(pb.GenerateRequest(text=TEXT), timeout=10))

    assert code is grpc.StatusCode.UNAVAILABLE
    assert error == failure


async def test_waiting_is_suggested_where_it_helps(fleet):
    fleet.error = NoEngine("no engine is connected", retry_after=1.5)
    async with serving(fleet) as (service, _):
        code, error = await refusal(service.Generate(pb.GenerateRequest(text=TEXT), timeout=10))

    assert (code.name, error.reason, error.retry_after) == ("UNAVAILABLE", "NO_ENGINE", 1.5)


async def test_code_that_grpc_does_not_know_becomes_unknown(service, fleet):
    fleet.put(EngineError(ErrorStatus(code=99, message="odd", reason="ODD", domain="x")))

    code, error = await refusal(service.Generate(pb.GenerateRequest(text=TEXT), timeout=10))

    assert (code.name, error.reason, error.message) == ("UNKNOWN", "ODD", "odd")


async def test_bug_is_internal_logged_and_ends_one_call_only(service, fleet, caplog):
    fleet.put(ZeroDivisionError("secret of the process"))

    code, error = await refusal(service.Generate(pb.GenerateRequest(text=TEXT), timeout=10))

    assert (code.name, error.reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in error.message
    assert "secret of the process" in caplog.text
    fleet.answer([80])
    assert [m async for m in service.Generate(pb.GenerateRequest(text=TEXT), timeout=10)]


async def test_full_router_says_when_to_come_back(fleet):
    async with serving(fleet, max_concurrent_requests=1) as (service, _):
        fleet.put(ADMITTED)
        first = service.Generate(pb.GenerateRequest(text=TEXT), timeout=10)
        await first.read()

        code, error = await refusal(service.Generate(pb.GenerateRequest(text=TEXT), timeout=10))

        assert (code.name, error.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert error.retry_after == 1.0
        first.cancel()


async def test_all_bytes_of_a_message_count_until_its_call_ends(fleet):
    async with serving(fleet) as (service, pipeline):
        fleet.put(ADMITTED)
        # Field 1000, which no contract knows: protobuf keeps it all the same.
        unknown = b"\xc2\x3e\x64" + b"x" * 100
        plain = pb.GenerateRequest(text=TEXT)
        request = pb.GenerateRequest.FromString(plain.SerializeToString() + unknown)
        call = service.Generate(request, timeout=10)
        await call.read()

        assert pipeline.request_bytes.held == plain.ByteSize() + len(unknown)

        call.cancel()
        await asyncio.wait_for(pipeline.wait_idle(), 10)
        assert pipeline.request_bytes.held == 0


async def test_draining_router_refuses_new_calls_and_finishes_old_ones(fleet):
    async with serving(fleet) as (service, pipeline):
        fleet.put(ADMITTED)
        running = service.Generate(pb.GenerateRequest(text=TEXT), timeout=10)
        await running.read()

        pipeline.drain()

        code, error = await refusal(service.Generate(pb.GenerateRequest(text=TEXT), timeout=10))
        assert (code.name, error.reason) == ("UNAVAILABLE", "DRAINING")
        fleet.put(Tokens(token_ids=[80]), Finished(reason=FinishReason.LENGTH))
        assert (await running.read()).token_ids == [80]
        assert (await running.read()).HasField("finish")
        await asyncio.wait_for(pipeline.wait_idle(), 10)


async def test_cancelled_call_leaves_its_engine(fleet):
    async with serving(fleet) as (service, pipeline):
        fleet.put(ADMITTED)
        call = service.Generate(pb.GenerateRequest(text=TEXT), timeout=10)
        await call.read()

        call.cancel()

        await asyncio.wait_for(pipeline.wait_idle(), 10)
        assert fleet.num_open == 0


async def test_cancelled_call_whose_reader_slept_leaves_its_engine(fleet):
    async with serving(fleet) as (service, pipeline):
        fleet.put(ADMITTED, *[Tokens(token_ids=[80] * 10_000)] * 1_000)
        call = service.Generate(pb.GenerateRequest(text=TEXT), timeout=30)
        await call.read()
        num_left = -1
        while num_left != fleet.events.qsize():
            # Until the transport takes no more, and the service is blocked on it.
            num_left = fleet.events.qsize()
            await asyncio.sleep(0.05)

        call.cancel()

        await asyncio.wait_for(pipeline.wait_idle(), 20)
        assert fleet.num_open == 0
        assert not fleet.events.empty(), "the reader kept up, so that nothing was shown"


async def test_deadline_of_the_call_ends_it_and_goes_along(fleet):
    async with serving(fleet) as (service, pipeline):
        fleet.put(ADMITTED)
        await service.Tokenize(pb.TokenizeRequest(text=TEXT))  # loads the tokenizer
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_end(service.Generate(pb.GenerateRequest(text=TEXT), timeout=0.3))

        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(pipeline.wait_idle(), 10)
        assert fleet.num_open == 0
        # gRPC rounds what it sends up.
        assert 0 < fleet.requests[0].timeout <= 0.31


async def test_trace_context_is_passed_on(service, fleet):
    fleet.answer([80])
    metadata = (("traceparent", "00-ab-cd-01"), ("tracestate", "a=b"), ("other", "x"))

    call = service.Generate(pb.GenerateRequest(text=TEXT), timeout=10, metadata=metadata)
    await call.read()

    assert fleet.requests[0].traceparent == "00-ab-cd-01"
    assert fleet.requests[0].tracestate == "a=b"


async def test_every_sampling_parameter_reaches_the_fleet():
    fleet = fleet_without_chats(supported_params=ALL_PARAMS, max_logprobs=20)
    fleet.answer([80])
    values = {
        "temperature": 0.5,
        "max_tokens": 9,
        "ignore_eos": True,
        "seed": 2**63 - 1,
        "top_k": 0,
        "top_p": 0.0,
        "min_p": 0.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 0.5,
        "min_tokens": 2,
        "logprobs": 0,
        "prompt_logprobs": 3,
    }
    others = {
        "stop_token_ids": [4, 5],
        "logit_bias": [pb.LogitBias(token_id=3, bias=-1)],
        "allowed_token_ids": [80, 81],
        "bad_words": ["fox"],
        "grammar": pb.Grammar(regex="a+"),
        "stop": ["quick"],
        "include_stop_text": True,
        "n": 1,
    }
    async with serving(fleet) as (service, _):
        await service.Generate(params(**values, **others), timeout=10).read()

    sent = fleet.requests[0].sampling_params
    assert {name: getattr(sent, name) for name in values} == values
    assert (sent.stop_token_ids, tuple(sent.allowed_token_ids)) == ((4, 5), (80, 81))
    assert sent.logit_bias == (LogitBias(3, -1.0),)
    assert sent.bad_words_token_ids == tuple(TOKENIZER.encode_word("fox"))
    assert sent.grammar == Grammar(form="regex", text="a+")
    # Whatever the message gains must be handed on, used here or refused by name.
    assert {field.name for field in pb.SamplingParams.DESCRIPTOR.fields} == {*values, *others}


async def test_answer_has_what_was_asked_for():
    fleet = fleet_without_chats(supported_params=ALL_PARAMS, max_logprobs=2)
    text = TOKENIZER.encode_text("the quick fox").tolist()
    top = TokenLogprobs(logprobs=[-1.0], top_token_ids=[5, 6], top_logprobs=[-0.5, -2.0])
    fleet.put(
        ADMITTED,
        PromptLogprobs(first_position=1, logprobs=top),
        *(Tokens(token_ids=[token_id], logprobs=top) for token_id in text),
    )
    asked = params(stop=["quick"], logprobs=2, prompt_logprobs=2)
    async with serving(fleet) as (service, _):
        _, prompt, *others = [m async for m in service.Generate(asked, timeout=10)]

    expected = [
        pb.Candidate(token_id=5, logprob=-0.5, text="$", raw=b"$"),
        pb.Candidate(token_id=6, logprob=-2.0, text="%", raw=b"%"),
    ]
    assert prompt.prompt_logprobs[0].token.token_id == TOKENIZER.encode_text(TEXT)[1]
    assert list(prompt.prompt_logprobs[0].top) == list(others[0].logprobs[0].top) == expected
    assert [m.logprobs[0].token.token_id for m in others] == [m.token_ids[0] for m in others]
    assert "".join(m.text for m in others) == "the "
    assert others[-1].finish == pb.Finish(
        reason=pb.FINISH_REASON_STOP,
        prompt_token_count=len(TOKENIZER.encode_text(TEXT)),
        completion_token_count=len(others),
        stop_text="quick",
    )
    assert fleet.num_open == 0


async def test_each_continuation_has_its_index():
    fleet = fleet_without_chats(supported_params=ALL_PARAMS)
    for index in (1, 0):
        fleet.answer([80 + index], index=index)
    async with serving(fleet) as (service, _):
        messages = [m async for m in service.Generate(params(n=2), timeout=10)]

    for index in (0, 1):
        own = [m for m in messages if m.index == index]
        assert [m.HasField("admission") for m in own] == [True, False, False]
        assert [list(m.token_ids) for m in own] == [[], [80 + index], []]
        assert [m.HasField("finish") for m in own] == [False, False, True]


async def test_message_of_a_plain_request_has_nothing_new(service, fleet):
    fleet.answer([80, 81])

    messages = [m async for m in service.Generate(pb.GenerateRequest(text=TEXT), timeout=10)]

    names = [sorted(field.name for field, _ in m.ListFields()) for m in messages]
    assert names == [["admission"], ["text", "token_ids"], ["finish"]]
    finish = sorted(field.name for field, _ in messages[-1].finish.ListFields())
    assert finish == ["completion_token_count", "prompt_token_count", "reason"]
    (model,) = (await service.ListModels(pb.ListModelsRequest(), timeout=10)).models
    assert not model.HasField("default_sampling_params")


async def test_list_shows_a_models_defaults():
    defaults = SamplingParams(temperature=0.5, top_k=20)
    async with serving(fleet_without_chats(default_sampling_params=defaults)) as (service, _):
        (model,) = (await service.ListModels(pb.ListModelsRequest(), timeout=10)).models

    assert model.default_sampling_params == pb.SamplingParams(temperature=0.5, top_k=20)


async def test_tokenize_and_detokenize_are_each_others_inverse(service):
    tokens = await service.Tokenize(pb.TokenizeRequest(model="small", text="é😀"), timeout=10)
    text = await service.Detokenize(
        pb.DetokenizeRequest(model="small", token_ids=tokens.token_ids), timeout=10
    )

    assert list(tokens.token_ids) == TOKENIZER.encode_text("é😀").tolist()
    assert text.text == "é😀"


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("Tokenize", pb.TokenizeRequest(), "INVALID_ARGUMENT", "EMPTY_PROMPT"),
        ("Tokenize", pb.TokenizeRequest(model="x", text="a"), "NOT_FOUND", "UNKNOWN_MODEL"),
        ("Tokenize", pb.TokenizeRequest(chat=pb.Chat()), "INVALID_ARGUMENT", "BAD_CHAT"),
        ("Detokenize", pb.DetokenizeRequest(model="x"), "NOT_FOUND", "UNKNOWN_MODEL"),
        (
            "Detokenize",
            pb.DetokenizeRequest(token_ids=[2**32 - 1]),
            "INVALID_ARGUMENT",
            "TOKEN_OUT_OF_RANGE",
        ),
    ],
)
async def test_bad_tokenize_and_detokenize_are_refused(service, method, request_, code, reason):
    got, error = await refusal(getattr(service, method)(request_, timeout=10))

    assert (got.name, error.reason) == (code, reason)


async def test_lists_show_models_and_engines(service):
    models = await service.ListModels(pb.ListModelsRequest(), timeout=10)
    engines = await service.ListEngines(pb.ListEnginesRequest(), timeout=10)

    assert list(models.models) == [
        pb.Model(
            name="small",
            max_model_length_tokens=128,
            vocabulary_size=600,
            serving_engine_count=1,
            model_fingerprint="f" * 32,
        )
    ]
    assert list(engines.engines) == [
        pb.Engine(
            address=ENGINE,
            model="small",
            state=pb.ENGINE_STATE_SERVING,
            running_count=3,
            indexed_block_count=5,
            reference_cost=pb.PlacementCost(
                wait={"nanos": 0}, prefill={"nanos": 102_400_000}, decode={"nanos": 9_600_000}
            ),
        )
    ]


async def test_burst_beyond_all_bounds_is_refused_with_a_reason(service, fleet):
    """Of 3,000 calls that come at once, gRPC itself cuts some without a word if it is let."""
    calls = [service.Generate(pb.GenerateRequest(text=""), timeout=60) for _ in range(3000)]

    reasons = {(await refusal(call))[1].reason for call in calls}

    assert reasons == {"EMPTY_PROMPT"}
