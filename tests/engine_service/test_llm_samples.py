"""What `LLM` makes of n and logprobs, over a fake executor."""

import pytest

from engine_service.core.types import FinishReason
from engine_service.errors import InvalidRequest
from engine_service.llm import LLM, SamplingParams, TokenLogprobs
from engine_service.worker import executor as executor_module
from protos.wire.reason import Reason
from tests.engine_service.core.fake_executor import (
    FakeExecutor,
    make_info,
    oracle,
    oracle_logprobs,
)

VOCABULARY = 100
DEFAULTS = SamplingParams(temperature=0.0, top_k=7)


@pytest.fixture
def llm(monkeypatch):
    info = make_info(default_sampling_params=DEFAULTS)
    monkeypatch.setattr(
        executor_module, "start_executor", lambda *options: (FakeExecutor(info), info)
    )
    with LLM("fake", max_num_batched_tokens=4) as llm:
        yield llm


@pytest.fixture
def requests(llm, monkeypatch):
    added = []
    add = llm._core.add
    monkeypatch.setattr(llm._core, "add", lambda request: (added.append(request), add(request)))
    return added


def expected_logprobs(token_ids, width):
    """Returns those of all tokens but the first."""
    rows = oracle_logprobs(token_ids, width, VOCABULARY)
    return [
        TokenLogprobs(token_id=token_id, logprob=own, top=list(zip(ids, logprobs, strict=True)))
        for token_id, (own, ids, logprobs) in zip(token_ids[1:], rows, strict=True)
    ]


def test_logprobs_are_those_of_the_tokens(llm):
    prompts = [[5, 6, 7, 8, 9, 10], [3], [5, 6, 7, 8]]
    params = [
        SamplingParams(max_tokens=5, ignore_eos=True, logprobs=3, prompt_logprobs=2),
        SamplingParams(max_tokens=5, ignore_eos=True, logprobs=0, prompt_logprobs=0),
        SamplingParams(max_tokens=5, ignore_eos=True),
    ]

    first, short, plain = llm.generate(prompts, params, use_tqdm=False)

    whole = [*prompts[0], *oracle(prompts[0], 5, 0, 0.0, VOCABULARY)]
    assert prompts[0] + first.token_ids == whole
    assert first.logprobs == expected_logprobs(whole, 3)[-5:]
    assert first.prompt_logprobs == [None, *expected_logprobs(prompts[0], 2)]
    assert [token.top for token in short.logprobs] == [[]] * 5
    assert short.prompt_logprobs == [None]
    assert (plain.logprobs, plain.prompt_logprobs) == (None, None)


def test_prompts_are_scored_without_tokens(llm):
    prompts = [[5, 6, 7, 8, 9, 10], [3], [7] * 64]

    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    completions = llm.generate(prompts, params, use_tqdm=False)

    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == []
        assert completion.finish_reason is FinishReason.LENGTH
        assert completion.prompt_logprobs == [None, *expected_logprobs(prompt, 1)]


def test_n_samples_of_each_prompt_come_in_order_and_share_it(llm, requests):
    prompts = [[5, 6, 7, 8, 9, 10], [3, 4]]
    params = SamplingParams(max_tokens=2, ignore_eos=True, seed=9, temperature=0.5)

    completions = llm.generate(prompts, params, n=3, use_tqdm=False)

    assert [completion.sample_index for completion in completions] == [0, 1, 2] * 2
    indices = [request.sampling_params.sample_index for request in requests]
    assert indices == [0, 1, 2] * 2
    assert len({request.request_id for request in requests}) == 6
    assert [list(request.prompt_token_ids) for request in requests[:3]] == [prompts[0]] * 3
    assert [completion.num_cached_tokens for completion in completions[:3]] == [0, 4, 4]


def test_model_s_defaults_apply_where_parameters_are_unset(llm, requests):
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=1, temperature=2.0, top_k=0)]
    llm.generate([[1], [2]], params, use_tqdm=False)

    found = [(r.sampling_params.temperature, r.sampling_params.top_k) for r in requests]
    assert found == [(0.0, 7), (2.0, 0)]


@pytest.mark.parametrize(
    ("n", "params", "words"),
    [
        (0, {}, ["n is 0", "1 to 128"]),
        (129, {}, ["n is 129", "1 to 128"]),
        (2.0, {}, ["n is 2.0", "1 to 128"]),
        (2, {"sample_index": 0}, ["sample_index is 0", "n is 2"]),
        (1, {"logprobs": 21}, ["logprobs is 21", "0 to 20"]),
        (1, {"allowed_token_ids": [1, 100]}, ["allowed_token_ids[1] is 100"]),
        (1, {"allowed_token_ids": ["a"]}, ["allowed_token_ids holds something"]),
        (1, {"stop_token_ids": [2**70]}, ["stop_token_ids holds something"]),
        (1, {"bad_words_token_ids": ((1,), (2, -1))}, ["bad_words_token_ids[1][1] is -1"]),
    ],
)
def test_bad_input_is_named_and_nothing_is_computed(llm, requests, n, params, words):
    with pytest.raises(InvalidRequest) as caught:
        llm.generate([[1]], SamplingParams(max_tokens=2, **params), n=n, use_tqdm=False)

    for word in words:
        assert word in caught.value.message
    assert caught.value.reason in (Reason.BAD_SAMPLING_PARAMS, Reason.TOKEN_OUT_OF_RANGE)
    assert not requests
    llm.generate([[1]], SamplingParams(max_tokens=2), use_tqdm=False)
