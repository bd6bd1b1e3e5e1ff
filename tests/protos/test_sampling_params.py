import math
from array import array

import pytest
import torch

from protos.pagestream.engine.v1 import engine_pb2
from protos.pagestream.router.v1 import router_pb2
from protos.wire.sampling_params import (
    BASIC_PARAMS,
    DEFAULT_PARAMS,
    GRAMMAR_FORMS,
    RECORD_COLUMNS,
    SUPPORTED_PARAMS,
    Grammar,
    LogitBias,
    ParamFault,
    SamplingParams,
    demanded,
    from_message,
    out_of_bounds,
    plain_value,
    to_fields,
    to_record,
    unsupported,
)

ALL = {
    "temperature": 0.5,
    "max_tokens": 7,
    "ignore_eos": True,
    "stop_token_ids": (4, 5),
    "seed": 2**63 - 1,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.25,
    "presence_penalty": -1.0,
    "frequency_penalty": 1.0,
    "repetition_penalty": 2.0,
    "min_tokens": 2,
    "logprobs": 1,
    "logit_bias": (LogitBias(3, -1.0),),
    "allowed_token_ids": array("I", (7, 8)),
    "prompt_logprobs": 2,
    "grammar": Grammar(form="regex", text="a+"),
}
OF_ENGINE = ALL | {"bad_words_token_ids": ((1, 2), (3,)), "sample_index": 4}
LISTS = ("stop_token_ids", "logit_bias", "allowed_token_ids", "bad_words_token_ids")
ZEROS = {name: 0 for name in ALL if name not in (*LISTS, "ignore_eos", "grammar", "max_tokens")}
NEUTRAL = {
    "top_k": (0, -1),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "min_tokens": (0,),
    "sample_index": (0,),
    "logit_bias": ((), []),
    "bad_words_token_ids": ((),),
    "allowed_token_ids": ((), frozenset()),
}


@pytest.mark.parametrize("values", [{}, ALL, ZEROS], ids=["none", "all", "zeros"])
@pytest.mark.parametrize("contract", [engine_pb2, router_pb2])
def test_every_parameter_passes_both_messages_unchanged(contract, values):
    params = SamplingParams(**values)

    message = contract.SamplingParams(**to_fields(params))

    assert from_message(message) == params
    assert {field.name for field, _ in message.ListFields()} == set(values)


def test_parameters_of_the_engine_alone_pass_unchanged():
    params = SamplingParams(**OF_ENGINE)

    assert from_message(engine_pb2.SamplingParams(**to_fields(params))) == params


@pytest.mark.parametrize("form", GRAMMAR_FORMS)
def test_every_form_of_grammar_passes_unchanged(form):
    texts = {"choices": ("a", "b")} if form == "choice" else {"text": "x"}
    grammar = Grammar(form=form, **({} if form == "json_object" else texts))
    for given in (grammar, Grammar(form=form, start_after_token_id=0)):
        params = SamplingParams(grammar=given)
        assert from_message(engine_pb2.SamplingParams(**to_fields(params))) == params


def test_parameters_are_those_of_the_messages():
    of_engine = {field.name for field in engine_pb2.SamplingParams.DESCRIPTOR.fields}
    of_router = {field.name for field in router_pb2.SamplingParams.DESCRIPTOR.fields}

    # Whatever a message gains must be handed on or refused by name.
    assert of_engine == set(OF_ENGINE) == set(SamplingParams.__slots__)
    assert of_router == set(ALL) | {"stop", "n", "bad_words", "include_stop_text"}


def test_what_does_not_fit_its_field_is_refused():
    with pytest.raises(ValueError, match="Value out of range"):
        engine_pb2.SamplingParams(**to_fields(SamplingParams(max_tokens=2**40)))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"temperature": math.nan}, ("temperature", "NaN", "0 to 100")),
        ({"temperature": math.inf}, ("temperature", "inf", "0 to 100")),
        ({"temperature": -0.1}, ("temperature", "-0.1", "0 to 100")),
        ({"temperature": 100.5}, ("temperature", "100.5", "0 to 100")),
        ({"max_tokens": -1}, ("max_tokens", "-1", "0 and more")),
        ({"max_tokens": 0}, ("max_tokens", "0", "1 and more; 0 needs prompt_logprobs")),
        ({"seed": -1}, ("seed", "-1", f"0 to {2**63 - 1}")),
        ({"seed": 2**63}, ("seed", str(2**63), f"0 to {2**63 - 1}")),
        ({"seed": 1.0}, ("seed", "1", f"the whole numbers 0 to {2**63 - 1}")),
        ({"max_tokens": "9"}, ("max_tokens", "9", "the whole numbers 0 and more")),
        ({"stop_token_ids": [1] * 1025}, ("stop_token_ids", "1025", "0 to 1024", "entries")),
    ],
)
def test_value_outside_its_bounds_is_named_with_them(values, fault):
    assert out_of_bounds(SamplingParams(**values)) == ParamFault(*fault)


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("top_k", -2, "-1 to 2147483647"),
        ("top_p", -0.1, "0 to 1"),
        ("top_p", 1.1, "0 to 1"),
        ("top_p", math.nan, "0 to 1"),
        ("min_p", 2.0, "0 to 1"),
        ("presence_penalty", -2.1, "-2 to 2"),
        ("frequency_penalty", 2.1, "-2 to 2"),
        ("repetition_penalty", 0.0, "0.01 to 100"),
        ("repetition_penalty", math.inf, "0.01 to 100"),
        ("min_tokens", -1, "0 and more"),
        ("logprobs", 101, "0 to 100"),
        ("prompt_logprobs", -1, "0 to 100"),
        ("sample_index", 65_536, "0 to 65535"),
    ],
)
def test_bounds_of_each_number(name, value, bounds):
    fault = out_of_bounds(SamplingParams(**{name: value}))

    assert (fault.field, fault.bounds) == (name, bounds)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"logit_bias": (LogitBias(1, 100.5),)}, "logit_bias[0].bias"),
        ({"logit_bias": (LogitBias(1, 0), LogitBias(1, math.nan))}, "logit_bias[1].bias"),
        ({"logit_bias": (LogitBias(1, 0),) * 1025}, "logit_bias"),
        ({"allowed_token_ids": range(65_537)}, "allowed_token_ids"),
        ({"bad_words_token_ids": ((1,),) * 1025}, "bad_words_token_ids"),
        ({"bad_words_token_ids": ((1,), ())}, "bad_words_token_ids[1]"),
        ({"bad_words_token_ids": ((1,) * 65,)}, "bad_words_token_ids[0]"),
        ({"bad_words_token_ids": ((1,) * 64,) * 65}, "bad_words_token_ids"),
    ],
)
def test_bounds_of_each_list(values, field):
    assert out_of_bounds(SamplingParams(**values)).field == field


def test_bounds_themselves_and_unset_values_are_allowed():
    largest = {"temperature": 100.0, "seed": 2**63 - 1, "stop_token_ids": frozenset(range(1024))}
    scoring = {"max_tokens": 0, "prompt_logprobs": 0}
    for values in ({}, {"temperature": 0, "max_tokens": 1, "seed": 0}, largest, scoring):
        assert out_of_bounds(SamplingParams(**values)) is None


def test_parameters_are_either_supported_or_refused():
    supported = {name: OF_ENGINE[name] for name in SUPPORTED_PARAMS}
    assert unsupported(SamplingParams(**supported)) is None
    for name, value in OF_ENGINE.items():
        others = set(OF_ENGINE) - {name}
        assert unsupported(SamplingParams(**{name: value}), others).field == name
    shown = unsupported(SamplingParams(logit_bias=ALL["logit_bias"] * 2), ()).value
    assert shown == "2 entries"
    assert unsupported(SamplingParams(logprobs=0), ()).field == "logprobs"


def test_engines_need_not_support_a_parameter_with_a_neutral_value():
    for name, values in NEUTRAL.items():
        for value in values:
            assert unsupported(SamplingParams(**{name: value}), ()) is None


@pytest.mark.parametrize(
    ("temperature", "expected"), [(None, 1.0), (0.0, 0.0), (0.7, 0.7), (100.0, 100.0)]
)
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_record_holds_what_the_sampler_needs(temperature, expected, seed):
    record = torch.tensor(list(to_record(SamplingParams(temperature=temperature), seed)))

    assert len(record) == len(RECORD_COLUMNS)
    assert record[RECORD_COLUMNS["seed"]] == seed
    bits = record[RECORD_COLUMNS["temperature"]].int()
    assert bits.view(torch.float32) == torch.tensor(expected, dtype=torch.float32)


@pytest.mark.parametrize("name", OF_ENGINE)
def test_demands_are_what_is_neither_basic_nor_neutral(name):
    asked = demanded(SamplingParams(**{name: OF_ENGINE[name]}))

    assert asked == ({name} - BASIC_PARAMS)
    for value in NEUTRAL.get(name, ()):
        assert not demanded(SamplingParams(**{name: value}))


def test_demands_are_those_of_a_message():
    message = engine_pb2.SamplingParams(**to_fields(SamplingParams(**OF_ENGINE)))

    assert demanded(from_message(message)) == OF_ENGINE.keys() - BASIC_PARAMS


@pytest.mark.parametrize("name", DEFAULT_PARAMS)
def test_plain_value_is_that_of_an_unset_parameter(name):
    plain = SamplingParams(**{name: plain_value(name)})

    assert to_record(plain, 3) == to_record(SamplingParams(), 3)
