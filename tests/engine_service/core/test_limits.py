import math
import pickle

import pytest

from engine_service.core.limits import Limits
from engine_service.core.types import (
    Request,
    int32_array,
)
from engine_service.errors import InvalidRequest
from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, LogitBias, SamplingParams
from tests.engine_service.core.fake_executor import make_info, tokens


def limits(**changes):
    return Limits.from_info(make_info(**changes))


def request(prompt=(1, 2, 3), resumed=(), priority=0, cache_salt="", **params):
    return Request(
        request_id=1,
        prompt_token_ids=int32_array(list(prompt)),
        resume_token_ids=int32_array(list(resumed)),
        priority=priority,
        cache_salt=cache_salt,
        sampling_params=SamplingParams(**params),
    )


def refusal(of, by=None):
    with pytest.raises(InvalidRequest) as caught:
        (by or limits()).check(of)
    return caught.value


def test_empty_prompt_is_refused_even_with_resumed_tokens():
    assert refusal(request(prompt=(), resumed=(1, 2))).reason is Reason.EMPTY_PROMPT


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 100.5},
        {"max_tokens": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"stop_token_ids": frozenset(range(1025))},
        {"top_k": -2},
        {"top_p": 1.5},
        {"min_p": math.nan},
        {"presence_penalty": -2.5},
        {"frequency_penalty": 2.5},
        {"repetition_penalty": 0.001},
        {"min_tokens": -1},
        {"min_tokens": 62},
        {"logprobs": 21},
        {"prompt_logprobs": 21},
        {"sample_index": 65_536},
    ],
    ids=str,
)
def test_a_bad_sampling_parameter_is_refused_by_name_value_and_bound(params):
    error = refusal(request(**params))

    ((name, value),) = params.items()
    shown = str(len(value) if name == "stop_token_ids" else value)
    assert error.reason is Reason.BAD_SAMPLING_PARAMS
    assert name in error.message
    assert shown.lower() in error.message.lower()
    assert error.metadata["value"].lower() == shown.lower()
    assert error.metadata["bounds"] in error.message


def test_the_bounds_themselves_are_allowed():
    limits().check(request(temperature=0.0, max_tokens=1, seed=0))
    limits().check(request(temperature=100.0, seed=2**63 - 1, priority=-(2**31)))
    limits(vocab_size=2000).check(request(stop_token_ids=frozenset(range(1024))))
    limits().check(request(priority=2**31 - 1, cache_salt="x" * 256, ignore_eos=True))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("prompt_token_ids", {"prompt": (5, 6, 100, -7)}),
        ("prompt_token_ids", {"prompt": (5, 6, -1)}),
        ("resume_token_ids", {"resumed": (0, 1, 2**31 - 1)}),
    ],
)
def test_a_token_out_of_range_is_refused_with_its_index(field, changes):
    error = refusal(request(**changes))

    value = next(iter(changes.values()))[2]
    assert error.reason is Reason.TOKEN_OUT_OF_RANGE
    assert error.message == f"{field}[2] is {value}, outside 0 to 99"
    assert error.metadata == {
        "field": field,
        "index": "2",
        "value": str(value),
        "bounds": "0 to 99",
        "vocab_size": "100",
    }


@pytest.mark.parametrize(
    ("params", "field", "index", "value"),
    [
        ({"logit_bias": (LogitBias(1, 0), LogitBias(100, 0))}, "logit_bias", 1, 100),
        ({"logit_bias": (LogitBias(-1, 0),)}, "logit_bias", 0, -1),
        ({"bad_words_token_ids": ((1,), (2, 100))}, "bad_words_token_ids[1]", 1, 100),
        ({"allowed_token_ids": (1, 2, 2**40)}, "allowed_token_ids", 2, 2**40),
    ],
)
def test_a_token_out_of_range_in_a_parameter_is_refused_with_its_place(params, field, index, value):
    error = refusal(request(**params))

    assert error.reason is Reason.TOKEN_OUT_OF_RANGE
    assert error.message.startswith(f"{field}[{index}]")
    assert error.metadata["field"] == field
    assert error.metadata["index"] == str(index)
    assert error.metadata["value"] == str(value)


def test_a_token_may_have_one_bias_only():
    biases = (LogitBias(3, 1), LogitBias(4, 1), LogitBias(3, 1))
    error = refusal(request(logit_bias=biases))

    assert error.reason is Reason.BAD_SAMPLING_PARAMS
    assert error.metadata["field"] == "logit_bias[2].token_id"
    assert error.metadata["value"] == "3"
    assert error.message == "logit_bias[2].token_id is 3, which logit_bias[0] names already"


def test_the_token_after_which_a_grammar_begins_is_named_if_out_of_range():
    grammar = Grammar(form="regex", text="a", start_after_token_id=100)
    error = refusal(request(grammar=grammar))

    assert error.reason is Reason.TOKEN_OUT_OF_RANGE
    assert error.message == "grammar.start_after_token_id is 100, outside 0 to 99"


def test_min_tokens_are_bounded_by_max_tokens_or_the_length_left():
    limits().check(request(min_tokens=5, max_tokens=5))
    limits().check(request(min_tokens=61))
    limits().check(request(min_tokens=4, max_tokens=4, resumed=(1, 2, 3, 4)))
    error = refusal(request(min_tokens=6, max_tokens=5))
    assert error.message == "min_tokens is 6, outside 0 to max_tokens 5"
    error = refusal(request(min_tokens=62))
    assert error.message == "min_tokens is 62, outside 0 to 61, the length left"


@pytest.mark.parametrize(
    ("params", "forbidden_by"),
    [
        ({"bad_words_token_ids": ((5,), (6,))}, "bad_words_token_ids"),
        ({"bad_words_token_ids": ((5,), (6, 6))}, None),
        ({"bad_words_token_ids": ((5,),)}, None),
        ({"bad_words_token_ids": ((5,),), "stop_token_ids": (6,)}, None),
        ({"stop_token_ids": (5, 6), "min_tokens": 1}, "min_tokens"),
        (
            {"bad_words_token_ids": ((5,),), "stop_token_ids": (6,), "min_tokens": 1},
            "bad_words_token_ids and min_tokens",
        ),
        (
            {
                "bad_words_token_ids": ((5,),),
                "stop_token_ids": (6,),
                "min_tokens": 1,
                "resumed": (7,),
            },
            None,
        ),
    ],
)
def test_allowed_tokens_of_which_none_may_come_are_refused(params, forbidden_by):
    asked = request(allowed_token_ids=(5, 6, 5), **params)

    if forbidden_by:
        error = refusal(asked)
        assert error.metadata["field"] == "allowed_token_ids"
        text = f"allowed_token_ids has 3 entries, all forbidden by {forbidden_by}"
        assert error.message == text
    else:
        limits().check(asked)


@pytest.mark.parametrize("ignores", [False, True])
def test_end_tokens_of_the_model_may_not_come_before_min_tokens(ignores):
    asked = request(allowed_token_ids=(0,), min_tokens=1, ignore_eos=ignores)

    if ignores:
        limits().check(asked)
    else:
        assert refusal(asked).reason is Reason.BAD_SAMPLING_PARAMS


def test_no_tokens_are_asked_for_with_logprobs_of_the_prompt_only():
    error = refusal(request(max_tokens=0))
    assert error.message == "max_tokens is 0, outside 1 and more; 0 needs prompt_logprobs"
    limits().check(request([1] * 64, max_tokens=0, prompt_logprobs=0))
    error = refusal(request([1] * 65, max_tokens=0, prompt_logprobs=0))
    assert "65 tokens, over max_model_len 64" in error.message
    small = limits(num_blocks=3, block_size=4)
    small.check(request([1] * 12, max_tokens=0, prompt_logprobs=0))
    error = refusal(request([1] * 13, max_tokens=0, prompt_logprobs=0), small)
    assert "13 tokens, over 12, the maximum that fits in the KV cache" in error.message


def test_logprobs_are_bounded_by_the_engine_and_by_its_vocabulary():
    limits(max_logprobs=3).check(request(logprobs=3, prompt_logprobs=3))
    error = refusal(request(prompt_logprobs=4), limits(max_logprobs=3))
    assert error.message == "prompt_logprobs is 4, outside 0 to 3 of this engine"
    limits(max_logprobs=0).check(request(logprobs=0))
    assert refusal(request(logprobs=1), limits(max_logprobs=0)).metadata["bounds"].startswith("0 t")
    assert refusal(request((1, 2), logprobs=8), limits(vocab_size=7)).metadata["value"] == "8"


@pytest.mark.parametrize("token_id", [-1, 100, 2**40])
def test_a_stop_token_out_of_range_is_refused(token_id):
    error = refusal(request(stop_token_ids=frozenset({token_id})))

    assert error.reason is Reason.TOKEN_OUT_OF_RANGE
    assert error.metadata["field"] == "stop_token_ids"


@pytest.mark.parametrize(
    ("num_prompt_tokens", "num_resumed_tokens", "max_tokens", "is_refused"),
    [
        (60, 0, 4, False),
        (60, 0, 5, True),
        (63, 0, None, False),
        (64, 0, None, True),
        (60, 4, None, False),
        (60, 5, None, True),
        # max_tokens counts the resumed ones.
        (60, 4, 4, False),
    ],
)
def test_prompt_and_output_must_fit_the_model(
    num_prompt_tokens, num_resumed_tokens, max_tokens, is_refused
):
    asked = request([1] * num_prompt_tokens, [1] * num_resumed_tokens, max_tokens=max_tokens)

    if not is_refused:
        limits().check(asked)
        return
    error = refusal(asked)
    assert error.reason is Reason.PROMPT_TOO_LONG
    assert f"{num_prompt_tokens}" in error.message
    assert "65 tokens, over max_model_len 64" in error.message
    assert error.metadata["max_model_len"] == "64"
    assert error.metadata["num_prompt_tokens"] == str(num_prompt_tokens)


def test_a_request_that_the_whole_pool_cannot_hold_is_refused():
    small = limits(num_blocks=3, block_size=4)

    # 13 tokens: the last one's keys and values are never needed.
    small.check(request([1] * 6, max_tokens=7))
    error = refusal(request([1] * 6, max_tokens=8), small)

    assert error.reason is Reason.PROMPT_TOO_LONG
    assert "14 tokens, over 13, the maximum that fits in the KV cache" in error.message


def test_without_max_tokens_the_length_is_what_model_and_pool_allow():
    assert limits().max_num_tokens(request()) == 64
    assert limits(num_blocks=3, block_size=4).max_num_tokens(request()) == 13
    assert limits().max_num_tokens(request(max_tokens=5)) == 8


def test_more_resumed_tokens_than_max_tokens_are_refused():
    error = refusal(request(resumed=(1, 2, 3), max_tokens=2))

    assert error.reason is Reason.BAD_REQUEST
    assert error.metadata == {"num_resumed_tokens": "3", "max_tokens": "2"}


def test_a_long_salt_is_refused_without_being_quoted():
    error = refusal(request(cache_salt="s" * 257))

    assert error.reason is Reason.BAD_REQUEST
    assert error.message == "cache_salt has 257 characters, over 256"


@pytest.mark.parametrize("priority", [2**31, -(2**31) - 1])
def test_a_priority_outside_int32_is_refused(priority):
    error = refusal(request(priority=priority))

    assert error.reason is Reason.BAD_REQUEST
    assert str(priority) in error.message


def test_a_refusal_survives_the_way_to_the_server():
    error = refusal(request(temperature=-1.0))

    copy = pickle.loads(pickle.dumps(error))

    assert (copy.message, copy.reason, copy.metadata) == (
        error.message,
        error.reason,
        error.metadata,
    )


def test_length_is_checked_before_a_long_prompt_is_read():
    prompt = tokens(-1) * 100_000

    error = refusal(Request(request_id=1, prompt_token_ids=prompt))

    assert error.reason is Reason.PROMPT_TOO_LONG
