"""Engines that support more and engines that support less, of one model."""

from dataclasses import replace

import grpc
import pytest

from protos.wire.sampling_params import BASIC_PARAMS, SamplingParams
from protos.wire.status import Reason, code_number
from router.errors import InvalidRequest, NoEngine, QueueFull
from router.types.engine_state import EngineState
from tests.fakes.fake_engine import expected_tokens
from tests.router.fleets import (
    CONFIG,
    SLOW,
    collect,
    engine_of,
    first_tokens,
    fleet_of,
    request,
    states,
    tokens_of,
    until,
)

OLD = replace(CONFIG, supported_params=BASIC_PARAMS, max_logprobs=0)
NEW = CONFIG
NEUTRAL = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "sample_index": 0,
}


@pytest.mark.parametrize(
    "params", [{"top_k": 5}, {"logprobs": 0}, {"prompt_logprobs": 0}, {"allowed_token_ids": (7,)}]
)
async def test_request_goes_only_to_engines_that_support_its_parameters(params):
    async with fleet_of(OLD, NEW, OLD, placement="round_robin") as (fleet, engines):
        for _ in range(6):
            events = fleet.generate(request([1], **params))
            admitted = await anext(events)
            assert engine_of(engines, admitted) is engines[1]
            await events.aclose()

        assert not engines[0].submissions
        assert not engines[2].submissions


async def test_neutral_values_keep_a_request_from_no_engine():
    async with fleet_of(OLD, NEW, placement="round_robin") as (fleet, engines):
        for number in range(4):
            _, tokens, _ = await collect(fleet, request([number], **NEUTRAL))
            assert tokens == expected_tokens([number], 8)

        old, new = (
            [one.request.sampling_params for one in engine.submissions] for engine in engines
        )
        assert len(old) == len(new) == 2
        assert all(
            {field.name for field, _ in params.ListFields()} <= BASIC_PARAMS for params in old
        )
        assert all(params.HasField(name) for params in new for name in NEUTRAL)


async def test_parameter_that_no_engine_supports_is_refused_by_name():
    with_top_p = replace(OLD, supported_params=BASIC_PARAMS | {"top_p"})
    async with fleet_of(OLD, with_top_p) as (fleet, engines):
        with pytest.raises(InvalidRequest) as raised:
            await collect(fleet, request([1], top_p=0.5, min_p=0.5))

        status = raised.value.status
        assert status.reason == Reason.UNSUPPORTED_PARAMETER
        assert status.code == code_number(grpc.StatusCode.INVALID_ARGUMENT)
        assert status.message == (
            'sampling_params.min_p is 0.5, but no engine of model "fake" supports the parameter'
        )
        assert (status.metadata["field"], status.metadata["value"]) == ("min_p", "0.5")
        assert "top_p" in status.metadata["supported"].split(",")
        assert not any(engine.submissions for engine in engines)


async def test_parameters_that_no_engine_supports_together_are_refused():
    configs = [
        replace(OLD, supported_params=BASIC_PARAMS | names)
        for names in ({"top_p"}, {"top_k", "min_p"})
    ]
    async with fleet_of(*configs) as (fleet, _):
        with pytest.raises(InvalidRequest) as raised:
            await collect(fleet, request([1], top_p=0.5, min_p=0.5, top_k=3))

        assert "top_p is 0.5" in raised.value.status.message
        assert "together with the others of this request" in raised.value.status.message


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
async def test_more_logprobs_than_any_engine_has_are_refused(field):
    async with fleet_of(replace(NEW, max_logprobs=5), replace(NEW, max_logprobs=20)) as (
        fleet,
        engines,
    ):
        assert fleet.model_info("fake").max_logprobs == 20
        await fleet.generate(request([1, 2], **{field: 20})).asend(None)
        assert [len(engine.submissions) for engine in engines] == [0, 1]

        with pytest.raises(InvalidRequest) as raised:
            await collect(fleet, request([1, 2], **{field: 21}))

        assert raised.value.status.reason == Reason.BAD_SAMPLING_PARAMS
        assert raised.value.status.metadata == {"field": field, "value": "21", "bounds": "0 to 20"}


async def test_engine_that_supports_a_parameter_and_is_full_or_away_makes_it_unavailable():
    async with fleet_of(OLD, NEW) as (fleet, (_, new)):
        new.refuse(Reason.QUEUE_FULL, 1.0)
        with pytest.raises(QueueFull):
            await collect(fleet, request([1], top_k=5))

        await new.stop()
        await until(lambda: states(fleet) == [EngineState.SERVING, EngineState.UNAVAILABLE])
        with pytest.raises(NoEngine):
            await collect(fleet, request([1], top_k=5))
        await new.start()


async def test_request_of_an_engine_that_dies_goes_on_only_where_its_parameters_are_supported():
    old = replace(SLOW, supported_params=BASIC_PARAMS)
    async with fleet_of(old, SLOW, SLOW, old) as (fleet, engines):
        streams = [fleet.generate(request([n], 40, top_k=5)) for n in range(4)]
        firsts = [await first_tokens(events) for events in streams]

        engines[1].die_after(0)

        for number, (first, events) in enumerate(zip(firsts, streams, strict=True)):
            rest, _ = await tokens_of(events)
            assert first + rest == expected_tokens([number], 40)
        assert not engines[0].submissions
        assert not engines[3].submissions


async def test_resumed_request_waits_for_an_engine_that_supports_it():
    old = replace(SLOW, supported_params=BASIC_PARAMS)
    async with fleet_of(old, SLOW) as (fleet, (idle, busy)):
        events = fleet.generate(request([1], 40, top_k=5))
        first = await first_tokens(events)

        await busy.restart()

        rest, _ = await tokens_of(events)
        assert first + rest == expected_tokens([1], 40)
        assert not idle.submissions


async def test_length_that_only_an_older_engine_has_counts_for_requests_that_it_may_get():
    async with fleet_of(OLD, replace(NEW, max_model_len=64)) as (fleet, (old, new)):
        _, tokens, _ = await collect(fleet, request(range(60), 8))
        assert len(tokens) == 8
        assert len(old.submissions) == 1

        # Too long for the only engine that it may get, which says so.
        with pytest.raises(Exception, match="over max_model_len 64"):
            await collect(fleet, request(range(60), 8, top_k=3))
        assert len(new.submissions) == 1


async def test_engines_whose_defaults_differ_serve_one_model_and_the_difference_is_logged(caplog):
    own = SamplingParams(temperature=0.5, top_k=20)
    async with fleet_of(replace(NEW, default_sampling_params=own)) as (fleet, _):
        assert fleet.model_info("fake").default_sampling_params == own
        assert not caplog.text
    async with fleet_of(NEW, replace(NEW, default_sampling_params=own)) as (fleet, engines):
        assert all(state is EngineState.SERVING for state in states(fleet))
        used = fleet.model_info("fake").default_sampling_params

    (line,) = [line for line in caplog.messages if line.startswith("engine defaults differ")]
    # The one that was there before it is the one whose defaults apply.
    before = next(e for e in engines if f"that of engine {e.address} is" in line)
    newcomer = next(e for e in engines if e is not before)
    assert f"engine={newcomer.address} model=fake detail=its default temperature is " in line
    assert used == before.config.default_sampling_params


async def test_defaults_of_an_engine_do_not_change_what_a_request_means():
    own = SamplingParams(temperature=0.5, top_k=20)
    async with fleet_of(replace(NEW, default_sampling_params=own)) as (fleet, (engine,)):
        await collect(fleet, request([1], temperature=None))

        sent = engine.submissions[0].request.sampling_params
        assert (sent.temperature, sent.HasField("top_k"), sent.top_k) == (1.0, True, 0)
        assert not sent.HasField("top_p")
