"""How engines that differ in what they support are described as one model."""

from types import SimpleNamespace

import pytest

from protos.wire.sampling_params import ALL_PARAMS, BASIC_PARAMS, SamplingParams
from router.engines import catalogue
from tests.fakes.fake_fleet import model_info

OWN = SamplingParams(temperature=0.6, top_k=20)
NEW = {"supported_params": ALL_PARAMS, "default_sampling_params": OWN, "max_logprobs": 20}


def member(accepted_at, **fields):
    info = model_info(**fields)
    life = SimpleNamespace(
        accepted_at=accepted_at, served_model=info, accepted_model=info, model=info
    )
    life.takes_requests = True
    return SimpleNamespace(life=life, address=f"e:{accepted_at}")


def described(*members):
    """Returns what both the catalogue and its listing say of the only model."""
    found = catalogue.find("", members)
    (listed,) = catalogue.models(members)
    assert listed.info == found
    assert listed.num_serving_engines == len(members)
    return found


def test_model_is_described_as_its_only_engine_describes_it():
    one = member(1, **NEW)

    assert described(one, member(2, **NEW)) is one.life.model


def test_length_logprobs_and_parameters_are_the_most_of_any_engine():
    members = [
        member(1, max_model_len=128, max_logprobs=5, supported_params=BASIC_PARAMS | {"top_k"}),
        member(2, max_model_len=64, max_logprobs=20, supported_params=BASIC_PARAMS | {"min_p"}),
    ]

    for found in (described(*members), described(*reversed(members))):
        assert (found.max_model_len, found.max_logprobs) == (128, 20)
        assert found.supported_params == BASIC_PARAMS | {"top_k", "min_p"}


@pytest.mark.parametrize("times", [(1, 2), (2, 1)])
def test_defaults_are_those_of_the_engine_connected_longest(times):
    first, second = times
    members = [
        member(first, **NEW),
        member(second, **NEW | {"default_sampling_params": SamplingParams(top_p=0.5)}),
    ]

    expected = OWN if first < second else SamplingParams(top_p=0.5)
    assert described(*members).default_sampling_params == expected


@pytest.mark.parametrize("times", [(1, 2), (2, 1)])
def test_defaults_that_an_older_engine_does_not_support_wait_until_it_has_left(times):
    new, old = member(times[0], **NEW), member(times[1])

    assert described(new, old).default_sampling_params == SamplingParams()
    assert described(new).default_sampling_params == OWN


def test_defaults_that_every_engine_supports_apply_in_a_mixed_fleet():
    new = member(1, **NEW | {"default_sampling_params": SamplingParams(temperature=0.6)})

    found = described(new, member(2))

    assert found.default_sampling_params == SamplingParams(temperature=0.6)


def test_difference_of_defaults_is_named():
    known, newcomer = member(1, **NEW), member(2)

    said = catalogue.other_defaults(newcomer, newcomer.life.model, [known, newcomer])

    assert said == "its default temperature is unset, that of engine e:1 is 0.6"
    assert catalogue.other_defaults(known, known.life.model, [known]) == ""
    assert catalogue.difference(newcomer, newcomer.life.model, [known, newcomer]) == ""
