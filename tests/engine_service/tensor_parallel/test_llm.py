"""Tokens of real ranks, processes that exchange over gloo, against those of a single one."""

import random

import pytest
import torch.distributed

from engine_service.errors import StartupError
from engine_service.llm import LLM, SamplingParams
from tests.engine_service.sampling_choices import random_choices
from tests.engine_service.tiny_models import Shape, make_model, random_tokens

NUM_TOKENS = 24
OPTIONS = {
    "device": "cpu",
    "cpu_threads": 1,
    "block_size": 16,
    # Eight sequences of some five blocks do not fit: some are preempted.
    "num_blocks": 14,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 48,
}


def make_tiny(folder, num_kv_heads):
    """Makes a model of an odd vocabulary and a tied head."""
    shape = Shape(
        num_heads=2 * num_kv_heads,
        num_kv_heads=num_kv_heads,
        head_dim=16,
        is_tied=True,
        vocab_size=301,
    )
    return make_model(folder / "model", shape)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """2 key-value heads."""
    return make_tiny(tmp_path_factory.mktemp("ranks"), 2)


def answers(tiny, num_ranks):
    """Returns tokens, cached tokens, preemptions and the fingerprint."""
    rng = random.Random(3)
    common = random_tokens(rng, 40, tiny.vocab_size)
    prompts = [[*common, *random_tokens(rng, 1 + 3 * i, tiny.vocab_size)] for i in range(6)]
    prompts += [random_tokens(rng, length, tiny.vocab_size) for length in (1, 16, 33, 90, 50, 60)]
    params = [
        SamplingParams(
            **(random_choices(rng, tiny.vocab_size) | {"stop_token_ids": ()})
            if i % 3 == 2
            else {"temperature": (0.0, 0.8)[i % 2]},
            seed=i,
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
        )
        for i in range(len(prompts))
    ]
    with LLM(str(tiny.folder), tensor_parallel_size=num_ranks, **OPTIONS) as llm:
        assert llm.info.tensor_parallel_size == num_ranks
        first = llm.generate(prompts, params, use_tqdm=False)
        again = llm.generate(prompts[:2], params[:2], use_tqdm=False)
        assert llm.num_preemptions > 0
        return (
            [completion.token_ids for completion in [*first, *again]],
            [completion.num_cached_tokens for completion in again],
            llm.num_preemptions,
            llm.info.model_fingerprint,
        )


@pytest.fixture(scope="module")
def alone(tiny):
    return answers(tiny, 1)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_give_the_tokens_of_a_single_one(tiny, alone, num_ranks):
    assert max(alone[1]) > 0

    assert answers(tiny, num_ranks) == alone
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_eight_ranks_with_four_heads_give_the_tokens_of_a_single_one(tmp_path):
    tiny = make_tiny(tmp_path, 4)

    assert answers(tiny, 8) == answers(tiny, 1)


@pytest.mark.parametrize(
    ("num_ranks", "why"),
    [
        (3, "num_key_value_heads is 2, no multiple and no divisor of it"),
        (8, "num_attention_heads is 4, not a multiple of it"),
        (16, "vocab_size is 301, under 1024"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_before_any_rank_starts(tiny, num_ranks, why):
    with pytest.raises(StartupError, match=f"tensor_parallel_size is {num_ranks}.*{why}"):
        LLM(str(tiny.folder), tensor_parallel_size=num_ranks, **OPTIONS)
