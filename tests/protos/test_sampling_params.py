import math

import pytest
import torch

from protos.pagestream.engine.v1 import engine_pb2
from protos.pagestream.router.v1 import router_pb2
from protos.wire.sampling_params import (
    RECORD_COLUMNS,
    SUPPORTED_PARAMS,
    LogitBias,
    SamplingParams,
    from_message,
    out_of_bounds,
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
}
ZEROS = {
    name: 0
    for name in ALL
    if name not in ("ignore_eos", "stop_token_ids", "logit_bias", "max_tokens")
}


@pytest.mark.parametrize("values", [{}, ALL, ZEROS], ids=["none", "all", "zeros"])
@pytest.mark.parametrize("contract", [engine_pb2, router_pb2])
def test_every_parameter_passes_both_messages_unchanged(contract, values):
    params = SamplingParams(**values)

    message = contract.SamplingParams(**to_fields(params))

    assert from_message(message) == params
    assert {field.name for field, _ in message.ListFields()} == set(values)


def test_parameters_are_those_of_the_messages():
    of_engine = {field.name for field in engine_pb2.SamplingParams.DESCRIPTOR.fields}
    of_router = {field.name for field in router_pb2.SamplingParams.DESCRIPTOR.fields}

    # Whatever a message gains must be handed on or refused by name.
    assert of_engine == set(ALL) == set(SamplingParams.__slots__)
    assert of_router == of_engine | {"stop", "n"}


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
        ({"max_tokens": 0}, ("max_tokens", "0", "1 and more")),
        ({"seed": -1}, ("seed", "-1", f"0 to {2**63 - 1}")),
        ({"seed": 2**63}, ("seed", str(2**63), f"0 to {2**63 - 1}")),
        ({"seed": 1.0}, ("seed", "1", f"the whole numbers 0 to {2**63 - 1}")),
        ({"max_tokens": "9"}, ("max_tokens", "9", "the whole numbers 1 and more")),
        ({"stop_token_ids": [1] * 1025}, ("number of stop_token_ids", "1025", "0 to 1024")),
    ],
)
def test_value_outside_its_bounds_is_named_with_them(values, fault):
    assert out_of_bounds(SamplingParams(**values)) == fault


def test_bounds_themselves_and_unset_values_are_allowed():
    largest = {"temperature": 100.0, "seed": 2**63 - 1, "stop_token_ids": frozenset(range(1024))}
    for values in ({}, {"temperature": 0, "max_tokens": 1, "seed": 0}, largest):
        assert out_of_bounds(SamplingParams(**values)) is None


def test_parameters_are_either_supported_or_refused():
    assert unsupported(SamplingParams(**{name: ALL[name] for name in SUPPORTED_PARAMS})) is None
    for name in set(ALL) - set(SUPPORTED_PARAMS):
        assert unsupported(SamplingParams(**{name: ALL[name]})).field == name
        assert unsupported(SamplingParams(**{name: 0})).field == name
    assert unsupported(SamplingParams(logit_bias=[])) is None
    assert unsupported(SamplingParams(logit_bias=ALL["logit_bias"] * 2)).value == "2 entries"


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
