"""Parameters are checked before any work, and engines get explicit values."""

import re

import pytest

from protos.wire.reason import Reason
from protos.wire.sampling_params import Grammar, LogitBias, SamplingParams, is_neutral
from router.errors import InvalidRequest, NoTokenizer
from router.request.pipeline import Pipeline
from router.text.tokenizer_pool import TokenizerPool
from tests.fakes import byte_fallback
from tests.fakes.fake_fleet import ALL_PARAMS
from tests.router.pipelines import (
    BOUNDS,
    INFINITY,
    NAN,
    TOKENIZER,
    Recorder,
    collect,
    fleet_without_chats,
    request,
    tokens,
)

LARGEST_ID = 2**32 - 1
NEUTRAL = {
    "top_k": (0, -1),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "min_tokens": (0,),
    "logit_bias": ((),),
    "allowed_token_ids": ((),),
}
OTHERS = {
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "min_tokens": 1,
    "logprobs": 0,
    "prompt_logprobs": 0,
    "logit_bias": (LogitBias(1, 1.0),),
    "allowed_token_ids": (1, 2),
    "grammar": Grammar(form="json_object"),
}


@pytest.fixture
def fleet():
    return fleet_without_chats(supported_params=ALL_PARAMS, max_logprobs=20)


@pytest.fixture
def old_fleet():
    return fleet_without_chats()


async def ask(fleet, **changes):
    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        return await collect(Pipeline(fleet, tokenizers, Recorder(), BOUNDS), request(**changes))


BAD_WORD = "1 to 64 characters, not only white space"


def sampling(**params):
    return {"sampling_params": SamplingParams(**params)}


@pytest.mark.parametrize(
    ("changes", "field", "value", "bounds"),
    [
        *(
            (sampling(**{name: value}), name, shown, bounds)
            for name, bounds in (
                ("temperature", "0 to 100"),
                ("top_p", "0 to 1"),
                ("min_p", "0 to 1"),
                ("presence_penalty", "-2 to 2"),
                ("frequency_penalty", "-2 to 2"),
                ("repetition_penalty", "0.01 to 100"),
            )
            for value, shown in ((NAN, "NaN"), (INFINITY, "inf"), (-INFINITY, "-inf"), (-3, "-3"))
        ),
        (sampling(top_k=-2), "top_k", "-2", "-1 to 2147483647"),
        (sampling(min_tokens=-1), "min_tokens", "-1", "0 and more"),
        (sampling(min_tokens=6, max_tokens=5), "min_tokens", "6", "0 to max_tokens 5"),
        (
            sampling(logprobs=21),
            "logprobs",
            "21",
            "0 to 20, the most that the engines report",
        ),
        (sampling(logprobs=-1), "logprobs", "-1", "0 to 100"),
        (
            sampling(prompt_logprobs=100),
            "prompt_logprobs",
            "100",
            "0 to 20, the most that the engines report",
        ),
        (
            sampling(logit_bias=(LogitBias(1, NAN),)),
            "logit_bias[0].bias",
            "NaN",
            "-100 to 100",
        ),
        (sampling(allowed_token_ids=range(65_537)), "allowed_token_ids", "65537", "0 to 65536"),
        ({"n": 0}, "n", "0", "1 to 128"),
        ({"n": -(2**31)}, "n", "-2147483648", "1 to 128"),
        ({"n": 2**31 - 1}, "n", "2147483647", "1 to 128"),
        ({"n": 3}, "n", "3", "1 to max_concurrent_requests 2"),
        (
            {"n": 2, **sampling(max_tokens=0, prompt_logprobs=0)},
            "n",
            "2",
            "1 to 1, as max_tokens is 0",
        ),
        ({"stop": ("a",) * 10_000}, "stop", "10000", "0 to 1024"),
        ({"stop": ("a", "")}, "stop[1]", "empty", "1 to 1024 bytes"),
        ({"stop": ("é" * 513,)}, "stop[0]", "1026", "1 to 1024"),
        (
            {"stop": tuple("a" * i for i in range(1, 1025))},
            "stop",
            "524800",
            "0 to 16384",
        ),
        ({"bad_words": ("a",) * 513}, "bad_words", "513", "0 to 512"),
        (
            {"bad_words": ("a", "b" * 65)},
            "bad_words[1]",
            "65",
            "1 to 64",
        ),
        ({"bad_words": ("  ",)}, "bad_words[0]", "only white space", BAD_WORD),
        ({"bad_words": ("",)}, "bad_words[0]", "empty", BAD_WORD),
        ({"bad_words": ("ﷺ" * 64,)}, "bad_words[0]", "192", "1 to 64"),
        (
            {"bad_words": tuple(f"{i:03}" + "ab" * 30 for i in range(90))},
            "bad_words",
            None,
            "0 to 4096",
        ),
    ],
)
async def test_value_out_of_bounds_is_named_with_them(fleet, changes, field, value, bounds):
    with pytest.raises(InvalidRequest) as caught:
        await ask(fleet, **changes)

    status = caught.value.status
    assert status.reason == Reason.BAD_SAMPLING_PARAMS
    assert status.metadata["field"] == field
    assert value is None or status.metadata["value"] == value
    assert bounds is None or status.metadata["bounds"] == bounds
    assert re.match(
        rf"{re.escape(field)} (is|has) {status.metadata['value']}[a-z ]*, outside", status.message
    )
    assert fleet.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": ("a", "")}, "stop[1] is empty, outside 1 to 1024 bytes"),
        ({"stop": ("a" * 1025,)}, "stop[0] has 1025 bytes, outside 1 to 1024"),
        (
            {"stop": tuple("a" * i for i in range(1, 1025))},
            "stop has 524800 characters in its different texts, outside 0 to 16384",
        ),
        ({"bad_words": ("",)}, f"bad_words[0] is empty, outside {BAD_WORD}"),
        ({"bad_words": ("a", " ")}, f"bad_words[1] is only white space, outside {BAD_WORD}"),
        ({"bad_words": ("b" * 65,)}, "bad_words[0] has 65 characters, outside 1 to 64"),
        ({"bad_words": ("ﷺ" * 64,)}, "bad_words[0] has 192 tokens, outside 1 to 64"),
        (sampling(stop_token_ids=[1] * 1025), "stop_token_ids has 1025 entries, outside 0 to 1024"),
    ],
)
async def test_text_or_list_out_of_bounds_is_named_in_plain_words(fleet, changes, message):
    with pytest.raises(InvalidRequest) as caught:
        await ask(fleet, **changes)

    assert caught.value.status.message == message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (sampling(stop_token_ids=(0, 600)), "stop_token_ids[1]"),
        (sampling(allowed_token_ids=(LARGEST_ID,)), "allowed_token_ids[0]"),
        (sampling(allowed_token_ids=(*range(600),) * 3 + (601,)), "allowed_token_ids[1800]"),
        (
            sampling(logit_bias=(LogitBias(599, 1.0), LogitBias(600, 1.0))),
            "logit_bias[1].token_id",
        ),
    ],
)
async def test_token_outside_the_vocabulary_is_named(fleet, changes, field):
    with pytest.raises(InvalidRequest) as caught:
        await ask(fleet, **changes)

    assert caught.value.status.reason == Reason.TOKEN_OUT_OF_RANGE
    assert caught.value.status.metadata["field"] == field
    assert caught.value.status.metadata["bounds"] == "0 to 599"


@pytest.mark.parametrize("name", OTHERS)
async def test_what_no_engine_supports_is_refused_by_name(old_fleet, fleet, name):
    changes = sampling(**{name: OTHERS[name]})
    with pytest.raises(InvalidRequest, match=f"^{name} is .* no engine .* supports") as caught:
        await ask(old_fleet, **changes)

    assert caught.value.status.reason == Reason.UNSUPPORTED_PARAMETER
    assert old_fleet.requests == []
    fleet.answer([80])
    assert (await ask(fleet, **changes))[-1].finish
    assert getattr(fleet.requests[0].sampling_params, name) == OTHERS[name]


@pytest.mark.parametrize(
    ("changes", "name"), [({"n": 2}, "n"), ({"bad_words": ("a",)}, "bad_words")]
)
async def test_what_the_router_makes_of_unsupported_parameters_is_refused(old_fleet, changes, name):
    with pytest.raises(InvalidRequest, match=f"^{name} is") as caught:
        await ask(old_fleet, **changes)

    assert caught.value.status.reason == Reason.UNSUPPORTED_PARAMETER


async def test_neutral_values_are_accepted_whatever_engines_support(old_fleet):
    for name, values in NEUTRAL.items():
        for value in values:
            assert is_neutral(SamplingParams(**{name: value}), name)
            old_fleet.answer([80])
            await ask(old_fleet, **sampling(**{name: value}), n=1)

    assert len(old_fleet.requests) == sum(map(len, NEUTRAL.values()))
    assert all(asked.sampling_params.sample_index is None for asked in old_fleet.requests)


async def test_defaults_of_the_model_fill_what_is_unset():
    defaults = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1)
    fleet = fleet_without_chats(supported_params=ALL_PARAMS, default_sampling_params=defaults)
    fleet.answer([80])
    fleet.answer([80])

    await ask(fleet)
    await ask(fleet, **sampling(temperature=0.0, top_p=1.0, max_tokens=5))

    assert fleet.requests[0].sampling_params == defaults
    assert fleet.requests[1].sampling_params == SamplingParams(
        temperature=0.0, top_k=20, top_p=1.0, repetition_penalty=1.1, max_tokens=5
    )


@pytest.mark.parametrize(("word", "num_sequences"), [("fox", 2), (" fox", 2), ("字字", 1)])
async def test_bad_word_is_forbidden_inside_a_word_and_at_its_beginning(fleet, word, num_sequences):
    fleet.answer([80])

    await ask(fleet, bad_words=(word, word))

    sequences = fleet.requests[0].sampling_params.bad_words_token_ids
    assert len(sequences) == num_sequences
    for text in (word.strip(), f" {word.strip()}"):
        token_ids = tuple(TOKENIZER.encode_text(text))
        assert any(token_ids[-len(sequence) :] == sequence for sequence in sequences)


async def test_longest_answer_to_a_scored_prompt_is_none(fleet):
    fleet.answer()

    await ask(fleet, prompt=tokens(*[1] * 128), **sampling(max_tokens=0, prompt_logprobs=1))

    assert fleet.requests[0].sampling_params.max_tokens == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": ("a",)}, "stop needs a tokenizer, use stop_token_ids instead: model 'small' has"),
        ({"bad_words": ("a",)}, "bad_words needs a tokenizer, use logit_bias instead"),
    ],
)
async def test_texts_need_a_tokenizer(changes, message):
    fleet = fleet_without_chats(supported_params=ALL_PARAMS, tokenizer_sha256="")

    with pytest.raises(NoTokenizer, match=message) as caught:
        await ask(fleet, prompt=tokens(1), **changes)

    assert caught.value.status.reason == Reason.NO_TOKENIZER


async def test_text_that_encodes_to_nothing_is_no_bad_word(fleet):
    fleet.files = byte_fallback.files("llama")
    fleet.answer([80])

    await ask(fleet, bad_words=("world",))

    (asked,) = fleet.requests
    assert asked.sampling_params.bad_words_token_ids
    assert all(asked.sampling_params.bad_words_token_ids)
