import asyncio
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine_service.core.limits import Limits
from engine_service.core.types import (
    Failure,
    FinishReason,
    Request,
    int32_array,
)
from engine_service.errors import InvalidRequest, NoTokenizer
from engine_service.server import convert
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.sampling_params import SamplingParams, from_message
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import (
    admission,
    finish,
    generate_request,
    read,
    running_engine,
    starting_engine,
    status_of,
)


async def test_tokens_stream_as_they_come_and_end_with_the_reason():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request(4, 5, max_tokens=3, temperature=0.0))
        request = await engine.core.next_request()
        assert list(request.prompt_token_ids) == [4, 5]
        assert request.sampling_params.max_tokens == 3
        assert request.sampling_params.temperature == 0.0

        engine.core.step(
            {request.request_id: [10]}, admissions=[admission(request, num_cached_tokens=1)]
        )
        first = await read(call)
        assert (list(first.token_ids), first.admission.cached_token_count) == ([10], 1)
        assert first.admission.seed == 7
        assert not first.HasField("finish")

        engine.core.step(
            {request.request_id: [11]},
            finishes=[finish(request, FinishReason.STOP, stop_token_id=11)],
        )
        last = await read(call)
        assert list(last.token_ids) == [11]
        assert last.finish.reason == engine_pb2.FINISH_REASON_STOP
        assert last.finish.stop_token_id == 11
        assert await read(call) is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK


async def test_all_fields_of_a_request_reach_the_core():
    async with running_engine() as engine:
        message = generate_request(1, seed=5, ignore_eos=True, stop_token_ids=[8, 9])
        message.resume_token_ids.extend([20, 21])
        message.priority = -3
        message.cache_salt = "salt"
        # A call that nobody holds is cancelled when it is collected.
        call = engine.stub.Generate(message)
        request = await engine.core.next_request()
        call.cancel()
        params = request.sampling_params
        assert (params.seed, params.ignore_eos, params.stop_token_ids) == (5, True, (8, 9))
        assert (params.temperature, params.max_tokens) == (None, None)
        assert list(request.resume_token_ids) == [20, 21]
        assert (request.priority, request.cache_salt) == (-3, "salt")
        assert request.arrival_time > 0


async def test_model_s_defaults_apply_where_a_request_leaves_parameters_unset():
    defaults = SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
    async with running_engine(make_info(default_sampling_params=defaults)) as engine:
        calls = [
            engine.stub.Generate(generate_request()),
            engine.stub.Generate(generate_request(temperature=0.0, top_k=0, top_p=1.0)),
        ]
        found = []
        for _ in calls:
            params = (await engine.core.next_request()).sampling_params
            found.append((params.temperature, params.top_k, params.top_p, params.min_p))
        for call in calls:
            call.cancel()
        assert sorted(found) == [(0.0, 0, 1.0, None), (0.6, 20, 0.95, None)]


async def test_cancelling_the_call_cancels_in_the_core():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        engine.core.step({request.request_id: [10]}, admissions=[admission(request)])
        await read(call)
        call.cancel()
        assert await engine.core.next_cancelled_id() == request.request_id
        assert await engine.metric('requests_total{outcome="cancelled"}') == 1


async def test_call_past_its_grpc_deadline_is_cancelled_in_the_core():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request(), timeout=0.2)
        request = await engine.core.next_request()
        assert await engine.core.next_cancelled_id() == request.request_id
        assert (await status_of(call)).code == 4


async def test_failure_from_the_core_is_the_status_of_the_call():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        error = InvalidRequest("temperature is 9, the core says", {"value": "9"})
        engine.core.step(failures=[Failure(request_id=request.request_id, error=error)])
        status = await status_of(call)
        assert (status.code, status.reason) == (3, "BAD_REQUEST")
        assert status.message == "temperature is 9, the core says"
        assert status.metadata == {"value": "9"}
        assert status.domain == "pagestream.engine.v1"


async def test_failure_that_no_request_should_end_with_is_counted_as_internal():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        error = NoTokenizer("a reason of another call")
        engine.core.step(failures=[Failure(request_id=request.request_id, error=error)])
        assert (await status_of(call)).reason == "NO_TOKENIZER"
        assert await engine.metric('requests_total{outcome="internal"}') == 1
        await _serves_a_request(engine)


async def test_submission_is_logged_with_its_trace(caplog):
    caplog.set_level(logging.DEBUG, "engine_service")
    async with running_engine() as engine:
        message = generate_request(1, 2)
        message.request_id = "mine"
        call = engine.stub.Generate(message, metadata=(("traceparent", "00-ab-cd-01"),))
        await engine.core.next_request()
        call.cancel()
    [line] = [r.getMessage() for r in caplog.records if "submitted" in r.getMessage()]
    assert "request_id=mine num_prompt_tokens=2 traceparent=00-ab-cd-01" in line


async def test_unforeseen_failure_in_the_core_is_internal_and_service_goes_on():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        failure = Failure(request_id=request.request_id, error=ZeroDivisionError("secret"))
        engine.core.step(failures=[failure])
        status = await status_of(call)
        assert (status.code, status.reason) == (13, "INTERNAL")
        assert "secret" not in status.message
        await _serves_a_request(engine)


async def test_request_past_the_waiting_bound_is_refused_with_retry_info():
    async with running_engine(max_waiting_requests=1) as engine:
        first = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        status = await status_of(engine.stub.Generate(generate_request()))
        assert (status.code, status.reason) == (8, "QUEUE_FULL")
        assert status.retry_after == 1.0
        assert status.metadata["max_waiting_requests"] == "1"

        # Who is admitted waits no longer and makes room.
        engine.core.step(admissions=[admission(request)])
        assert (await read(first)).HasField("admission")
        call = engine.stub.Generate(generate_request())
        await _answer(engine, call)


_params = engine_pb2.SamplingParams


def _bias(token_id, bias):
    return engine_pb2.LogitBias(token_id=token_id, bias=bias)


def _ids(*token_ids):
    return engine_pb2.TokenSequence(token_ids=token_ids)


BAD_INPUTS = {
    "empty prompt": (
        lambda m: m.ClearField("prompt_token_ids"), "EMPTY_PROMPT", ["prompt_token_ids"],
    ),
    "prompt over the model's length": (
        lambda m: m.prompt_token_ids.extend([1] * 100), "PROMPT_TOO_LONG",
        ["prompt_token_ids", "103", "64"],
    ),
    "prompt and max_tokens over the model's length": (
        lambda m: setattr(m.sampling_params, "max_tokens", 62), "PROMPT_TOO_LONG",
        ["max_tokens", "62", "64"],
    ),
    "token at the end of the vocabulary": (
        lambda m: m.prompt_token_ids.append(100), "TOKEN_OUT_OF_RANGE",
        ["prompt_token_ids[3]", "100", "99"],
    ),
    "token beyond 31 bits": (
        lambda m: m.prompt_token_ids.append(2**32 - 1), "TOKEN_OUT_OF_RANGE",
        ["prompt_token_ids[3]", "4294967295", "99"],
    ),
    "resumed token out of range": (
        lambda m: m.resume_token_ids.append(2**31), "TOKEN_OUT_OF_RANGE",
        ["resume_token_ids[0]", "2147483648"],
    ),
    "stop token out of range": (
        lambda m: m.sampling_params.stop_token_ids.extend([7, 6, 2**32 - 1]), "TOKEN_OUT_OF_RANGE",
        ["stop_token_ids[2]", "4294967295"],
    ),
    "negative temperature": (
        lambda m: setattr(m.sampling_params, "temperature", -0.5), "BAD_SAMPLING_PARAMS",
        ["temperature", "-0.5", "0 to 100"],
    ),
    "number of 32 bits": (
        lambda m: setattr(m.sampling_params, "top_p", 1.1), "BAD_SAMPLING_PARAMS",
        ["top_p is 1.1,"],
    ),
    "temperature that is no number": (
        lambda m: setattr(m.sampling_params, "temperature", float("nan")), "BAD_SAMPLING_PARAMS",
        ["temperature", "NaN"],
    ),
    "no tokens at most, and no logprobs of the prompt": (
        lambda m: setattr(m.sampling_params, "max_tokens", 0), "BAD_SAMPLING_PARAMS",
        ["max_tokens", "0", "1 and more", "prompt_logprobs"],
    ),
    "negative seed": (
        lambda m: setattr(m.sampling_params, "seed", -1), "BAD_SAMPLING_PARAMS", ["seed", "-1"],
    ),
    "10,000 stop tokens": (
        lambda m: m.sampling_params.stop_token_ids.extend([1] * 10_000), "BAD_SAMPLING_PARAMS",
        ["stop_token_ids", "10000", "1024"],
    ),
    "long name": (
        lambda m: setattr(m, "request_id", "x" * 257), "BAD_REQUEST", ["request_id", "257", "256"],
    ),
    "name of two lines": (
        lambda m: setattr(m, "request_id", "a\nb"), "BAD_REQUEST", [r"request_id contains \n;"],
    ),
    "name that speaks to a terminal": (
        lambda m: setattr(m, "request_id", "\x9b2J"), "BAD_REQUEST", [r"request_id contains \x9b;"],
    ),
    "long salt": (
        lambda m: setattr(m, "cache_salt", "x" * 257), "BAD_REQUEST", ["cache_salt", "257", "256"],
    ),
    **{
        f"{field} of {value}": (
            lambda m, field=field, value=value: setattr(m.sampling_params, field, value),
            "BAD_SAMPLING_PARAMS", [field, shown, bounds],
        )
        for field, value, shown, bounds in [
            ("max_tokens", -1, "-1", "0 and more"),
            ("top_k", -2, "-2", "-1 to"),
            ("top_p", 1.5, "1.5", "0 to 1"),
            ("top_p", float("nan"), "NaN", "0 to 1"),
            ("min_p", -0.5, "-0.5", "0 to 1"),
            ("presence_penalty", 2.5, "2.5", "-2 to 2"),
            ("frequency_penalty", float("-inf"), "-inf", "-2 to 2"),
            ("repetition_penalty", 0.0, "0", "0.01 to 100"),
            ("min_tokens", -1, "-1", "0 and more"),
            ("min_tokens", 62, "62", "0 to 61"),
            ("logprobs", -1, "-1", "0 to 100"),
            ("logprobs", 21, "21", "0 to 20"),
            ("prompt_logprobs", 21, "21", "0 to 20"),
            ("prompt_logprobs", 101, "101", "0 to 100"),
            ("sample_index", 65_536, "65536", "0 to 65535"),
        ]
    },
    "more tokens at least than at most": (
        lambda m: m.sampling_params.MergeFrom(_params(min_tokens=6, max_tokens=5)),
        "BAD_SAMPLING_PARAMS", ["min_tokens", "6", "0 to max_tokens 5"],
    ),
    "bias of a token beyond the vocabulary": (
        lambda m: m.sampling_params.logit_bias.extend([_bias(1, 0), _bias(100, 1)]),
        "TOKEN_OUT_OF_RANGE", ["logit_bias[1].token_id", "100", "99"],
    ),
    "bias that is too large": (
        lambda m: m.sampling_params.logit_bias.append(_bias(1, 100.5)),
        "BAD_SAMPLING_PARAMS", ["logit_bias[0].bias", "100.5", "-100"],
    ),
    "bias that is no number": (
        lambda m: m.sampling_params.logit_bias.append(_bias(1, float("nan"))),
        "BAD_SAMPLING_PARAMS", ["logit_bias[0].bias", "NaN"],
    ),
    "two biases of one token": (
        lambda m: m.sampling_params.logit_bias.extend([_bias(7, 1), _bias(8, 1), _bias(7, 1)]),
        "BAD_SAMPLING_PARAMS", ["logit_bias[2].token_id", "7", "logit_bias[0]"],
    ),
    "1,025 biases": (
        lambda m: m.sampling_params.logit_bias.extend([_bias(1, 1)] * 1025),
        "BAD_SAMPLING_PARAMS", ["logit_bias", "1025", "1024"],
    ),
    "bad word beyond the vocabulary": (
        lambda m: m.sampling_params.bad_words_token_ids.extend([_ids(1), _ids(2, 3, 2**32 - 1)]),
        "TOKEN_OUT_OF_RANGE", ["bad_words_token_ids[1][2]", "4294967295", "99"],
    ),
    "empty bad word": (
        lambda m: m.sampling_params.bad_words_token_ids.extend([_ids(1), _ids()]),
        "BAD_SAMPLING_PARAMS", ["bad_words_token_ids[1]", "0", "1 to 64"],
    ),
    "1,025 bad words": (
        lambda m: m.sampling_params.bad_words_token_ids.extend([_ids(1)] * 1025),
        "BAD_SAMPLING_PARAMS", ["bad_words_token_ids", "1025", "1024"],
    ),
    "long bad word": (
        lambda m: m.sampling_params.bad_words_token_ids.append(_ids(*[1] * 65)),
        "BAD_SAMPLING_PARAMS", ["token_ids", "65", "64"],
    ),
    "allowed token beyond the vocabulary": (
        lambda m: m.sampling_params.allowed_token_ids.extend([*[5] * 1000, 2**31]),
        "TOKEN_OUT_OF_RANGE", ["allowed_token_ids[1000]", "2147483648", "99"],
    ),
    "65,537 allowed tokens": (
        lambda m: m.sampling_params.allowed_token_ids.extend([1] * 65_537),
        "BAD_SAMPLING_PARAMS", ["allowed_token_ids", "at least 65537", "65536"],
    ),
    "allowed tokens of which none may come": (
        lambda m: m.sampling_params.MergeFrom(
            _params(allowed_token_ids=[5, 6], bad_words_token_ids=[_ids(5), _ids(6)])
        ),
        "BAD_SAMPLING_PARAMS", ["allowed_token_ids", "2", "bad_words_token_ids"],
    ),
    "allowed tokens that may not come yet": (
        lambda m: m.sampling_params.MergeFrom(
            _params(allowed_token_ids=[0, 6], stop_token_ids=[6], min_tokens=1)
        ),
        "BAD_SAMPLING_PARAMS", ["allowed_token_ids", "2", "min_tokens"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda m: None,
        lambda m: m.ClearField("prompt_token_ids"),
        lambda m: m.prompt_token_ids.append(99),
        lambda m: m.prompt_token_ids.append(100),
        lambda m: m.resume_token_ids.extend([1, 2**31 - 1]),
        lambda m: m.resume_token_ids.extend([1] * 61),
        lambda m: m.sampling_params.stop_token_ids.extend([100]),
        lambda m: setattr(m.sampling_params, "max_tokens", 61),
        lambda m: setattr(m.sampling_params, "max_tokens", 62),
        lambda m: setattr(m.sampling_params, "temperature", 101.0),
        lambda m: setattr(m.sampling_params, "seed", -1),
        lambda m: setattr(m, "cache_salt", "x" * 257),
        lambda m: m.sampling_params.MergeFrom(_params(allowed_token_ids=[1, 2**31 + 1])),
        lambda m: m.sampling_params.MergeFrom(_params(logit_bias=[_bias(99, 1), _bias(100, 1)])),
        lambda m: m.sampling_params.MergeFrom(_params(bad_words_token_ids=[_ids(99, 100)])),
        lambda m: m.sampling_params.MergeFrom(_params(max_tokens=0, prompt_logprobs=3)),
        lambda m: m.sampling_params.MergeFrom(_params(logprobs=21)),
        lambda m: m.sampling_params.MergeFrom(_params(min_tokens=4, max_tokens=3)),
    ],
)
def test_what_enters_through_the_server_is_what_the_limits_let_in(change):
    message = generate_request()
    change(message)
    limits = Limits.from_info(make_info())
    params = message.sampling_params
    request = Request(
        request_id=1,
        prompt_token_ids=int32_array(list(message.prompt_token_ids)),
        resume_token_ids=int32_array(list(message.resume_token_ids)),
        sampling_params=from_message(params),
        cache_salt=message.cache_salt,
    )

    assert _refusal(lambda: convert.to_request(message, 1, limits, SamplingParams())) == _refusal(
        lambda: limits.check(request)
    )


def _refusal(check):
    try:
        check()
    except InvalidRequest as error:
        return error.message, error.reason, error.metadata
    return None


NEUTRAL = engine_pb2.SamplingParams(
    top_k=0, top_p=1, min_p=0, presence_penalty=0, frequency_penalty=0, repetition_penalty=1,
    min_tokens=0, sample_index=0,
)  # fmt: skip
UNUSUAL = {
    "top_k": 5, "top_p": 0.5, "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": 1.0,
    "repetition_penalty": 1.5, "min_tokens": 1, "logprobs": 0, "prompt_logprobs": 0,
    "sample_index": 1, "allowed_token_ids": [1], "logit_bias": [_bias(1, 2)],
    "bad_words_token_ids": [_ids(1)], "grammar": engine_pb2.Grammar(json_object=True),
}  # fmt: skip


async def test_neutral_values_of_all_parameters_are_accepted():
    async with running_engine() as engine:
        message = generate_request(1, 2)
        message.sampling_params.CopyFrom(NEUTRAL)
        call = engine.stub.Generate(message)
        request = await engine.core.next_request()
        assert list(request.prompt_token_ids) == [1, 2]
        call.cancel()


async def test_parameters_of_a_newer_contract_are_refused_by_name(subtests):
    old = ("temperature", "max_tokens", "ignore_eos", "stop_token_ids", "seed")
    known = {*old, *UNUSUAL}
    assert {field.name for field in engine_pb2.SamplingParams.DESCRIPTOR.fields} == known
    async with running_engine(make_info(supported_params=old)) as engine:
        for field, value in UNUSUAL.items():
            with subtests.test(field):
                message = generate_request()
                message.sampling_params.CopyFrom(_params(**{field: value}))
                status = await status_of(engine.stub.Generate(message))
                assert (status.code, status.reason) == (3, "UNSUPPORTED_PARAMETER")
                assert f"sampling_params.{field} is" in status.message
                assert status.metadata["field"] == field
        refused = await engine.metric('requests_total{outcome="unsupported_parameter"}')
        assert refused == len(UNUSUAL)
        await _serves_a_request(engine)


async def test_bad_input_is_refused_by_name_before_the_core_and_service_goes_on(subtests):
    async with running_engine() as engine:
        for name, (spoil, reason, words) in BAD_INPUTS.items():
            with subtests.test(name):
                message = generate_request()
                spoil(message)
                status = await status_of(engine.stub.Generate(message))
                assert (status.code, status.reason) == (3, reason)
                for word in words:
                    assert word in status.message
                if len(words) > 1:
                    assert words[1] in status.metadata.values()
                if reason in ("BAD_REQUEST", "BAD_SAMPLING_PARAMS"):
                    assert {"field", "value", "bounds"} <= set(status.metadata)
        # The first request that the core sees is the good one.
        await _serves_a_request(engine)


async def test_ten_megabytes_of_prompt_are_refused_by_their_number():
    async with running_engine() as engine:
        message = generate_request(*([1] * 2_000_000))
        status = await status_of(engine.stub.Generate(message))
        assert (status.code, status.reason) == (3, "PROMPT_TOO_LONG")
        assert "2000000" in status.message
        await _serves_a_request(engine)


async def test_call_that_is_not_read_is_cut_off_and_cancelled():
    info = make_info(max_model_len=10**8, num_blocks=10**8)
    async with running_engine(info, max_buffered_tokens=1000) as engine:
        slow = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        engine.core.step({request.request_id: [1]}, admissions=[admission(request)])
        # More than the transport holds on the way, so that the server has to wait.
        for _ in range(40):
            engine.core.step({request.request_id: [1] * 50_000})
        assert await engine.core.next_cancelled_id() == request.request_id
        await _serves_a_request(engine)
        status = await status_of(slow)
        assert (status.code, status.reason) == (8, "SLOW_READER")
        assert status.retry_after is None
        assert status.metadata["max_buffered_tokens"] == "1000"
        assert await engine.metric("slow_readers_total") == 1


async def test_death_of_the_core_answers_every_open_call():
    async with running_engine() as engine:
        calls = {number: engine.stub.Generate(generate_request(number)) for number in range(1, 6)}
        requests = [await engine.core.next_request() for _ in calls]
        running = calls[requests[0].prompt_token_ids[0]]
        engine.core.step({requests[0].request_id: [42]}, admissions=[admission(requests[0])])
        assert list((await read(running)).token_ids) == [42]
        engine.core.die()
        for call in calls.values():
            status = await status_of(call)
            assert (status.code, status.reason) == (14, "ENGINE_FAILED")
        await asyncio.wait_for(engine.server.wait_core_lost(), 10)
        late = await status_of(engine.stub.Generate(generate_request()))
        assert (late.code, late.reason) == (14, "ENGINE_FAILED")
        assert (await engine.http("/livez"))[0] == 503
        assert await engine.metric('requests_total{outcome="engine_failed"}') == 6


async def test_drain_refuses_new_calls_and_lets_open_ones_finish():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(engine.server.drain())
            await _readiness_is(engine, health_pb2.HealthCheckResponse.NOT_SERVING)
            status = await status_of(engine.stub.Generate(generate_request()))
            assert (status.code, status.reason) == (14, "DRAINING")
            assert (await engine.http("/readyz"))[0] == 503
            assert (await engine.http("/livez"))[0] == 200
            assert not draining.done()
            engine.core.step({request.request_id: [9]}, finishes=[finish(request)])
            assert list((await read(call)).token_ids) == [9]
        assert await read(call) is grpc.aio.EOF


async def test_call_that_outlasts_the_drain_ends_with_draining():
    async with running_engine(drain_grace_seconds=0.0) as engine:
        call = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        await engine.server.drain()
        status = await status_of(call)
        assert (status.code, status.reason) == (14, "DRAINING")
        assert await engine.core.next_cancelled_id() == request.request_id


async def test_calls_before_the_model_is_loaded_are_told_to_come_back():
    async with starting_engine() as engine:
        calls = [
            engine.stub.Generate(generate_request()),
            engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest()),
            engine.stub.GetTokenizer(engine_pb2.GetTokenizerRequest()),
            engine.stub.WatchCache(engine_pb2.WatchCacheRequest()),
            engine.stub.GenerateMany(),
        ]
        for call in calls:
            status = await status_of(call)
            assert (status.code, status.reason, status.retry_after) == (14, "STARTING", 1.0)


async def _serves_a_request(engine):
    await _answer(engine, engine.stub.Generate(generate_request(1)))


async def _answer(engine, call):
    request = await engine.core.next_request()
    assert len(request.prompt_token_ids) in (1, 3)
    engine.core.step(
        {request.request_id: [3]}, admissions=[admission(request)], finishes=[finish(request)]
    )
    assert list((await read(call)).token_ids) == [3]


async def _readiness_is(engine, wanted):
    stub = health_pb2_grpc.HealthStub(engine.channel)
    service = "pagestream.engine.v1.EngineService"
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    while (await read(watch)).status != wanted:
        pass
    watch.cancel()
