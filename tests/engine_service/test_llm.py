"""Whole generations, through scheduler, pool, worker and model, against transformers."""

import random
from dataclasses import dataclass

import pytest
import torch

from engine_service.core.limits import Limits
from engine_service.core.types import (
    FinishReason,
)
from engine_service.errors import InvalidRequest, StartupError
from engine_service.llm import LLM
from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.tiny_models import (
    CUDA_SHAPES,
    Shape,
    TinyModel,
    make_model,
    random_tokens,
)

NUM_PROMPTS = 50
NUM_TOKENS = 24
# Where transformers' two best logits come closer, rounding decides, and either token is right.
MIN_GAP = 1e-3
EDGE_LENGTHS = (1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 128, 255, 256, 257)

SMALL_POOL = {"block_size": 16, "num_blocks": 24, "max_num_seqs": 8, "max_num_batched_tokens": 24}
LARGE_POOL = {
    "block_size": 16,
    "num_blocks": 500,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 8192,
}
VARIANTS = {
    "tiny budgets": SMALL_POOL,
    "no prefix caching": SMALL_POOL | {"enable_prefix_caching": False},
    "all at once": LARGE_POOL,
    "blocks of 64": {"block_size": 64, "num_blocks": 8, "max_num_seqs": 8},
    "blocks of 256": {"block_size": 256, "num_blocks": 4, "max_num_seqs": 8},
    "chunks of 7": LARGE_POOL | {"max_num_batched_tokens": 7},
    "one at a time": LARGE_POOL | {"max_num_seqs": 1},
}
PREEMPTING = ("tiny budgets", "no prefix caching")
"""Their pool is so small that sequences give way to others and start over."""


@dataclass(frozen=True, slots=True)
class Cases:
    """Prompts and what transformers makes of them."""

    prompts: list[list[int]]
    tokens: list[list[int]]


def make_prompts(vocab_size):
    """Yields prompts without end: lengths about a block's, then in turn random and shared ones."""
    generator = random.Random(2)
    for length in EDGE_LENGTHS:
        yield random_tokens(generator, length, vocab_size)
    shared = random_tokens(generator, 40, vocab_size)
    while True:
        yield random_tokens(generator, generator.randint(1, 60), vocab_size)
        yield shared + random_tokens(generator, generator.randint(1, 20), vocab_size)
        # A prompt that is exactly the shared blocks, and nothing but them.
        yield shared[: generator.choice([16, 32])]


@pytest.fixture(scope="session")
def cases(tiny_model: TinyModel) -> Cases:
    prompts = make_prompts(tiny_model.vocab_size)
    return Cases(*tiny_model.clear_cases(prompts, NUM_PROMPTS, NUM_TOKENS, MIN_GAP))


def make_llm(model, **options):
    return LLM(str(model.folder), **({"device": "cpu"} | options))


def params(**values):
    return SamplingParams(**({"temperature": 0.0, "max_tokens": NUM_TOKENS} | values))


def generate(llm, prompts, sampling_params=None):
    completions = llm.generate(prompts, sampling_params or params(), use_tqdm=False)
    return [completion.token_ids for completion in completions]


def check_greedy(model, cases, options):
    with make_llm(model, **options) as llm:
        assert generate(llm, cases.prompts) == cases.tokens
        return llm.num_preemptions


def test_chosen_prompts_cover_the_block_edges(cases):
    lengths = [len(prompt) for prompt in cases.prompts]

    assert {15, 16, 17, 31, 32, 33, 64} <= set(lengths)
    assert len({tuple(tokens) for tokens in cases.tokens}) > NUM_PROMPTS / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_transformers(tiny_model, cases, variant):
    num_preemptions = check_greedy(tiny_model, cases, VARIANTS[variant])

    assert (num_preemptions > 0) == (variant in PREEMPTING)


def test_blocks_that_fell_out_of_the_window_serve_others(tmp_path_factory):
    shape = Shape(
        family="Mistral",
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        is_tied=False,
        fields={"sliding_window": 17},
    )
    model = make_model(tmp_path_factory.mktemp("windowed") / "model", shape)
    generator = random.Random(3)
    prompts = (random_tokens(generator, 170, model.vocab_size) for _ in range(1000))
    # 11 blocks each at first, 13 at the end; and blocks that two had are read by none any more.
    cases = Cases(*model.clear_cases(prompts, 6, NUM_TOKENS, MIN_GAP))
    pool = SMALL_POOL | {"max_num_seqs": 2, "max_num_batched_tokens": 256}

    assert check_greedy(model, cases, pool) == 0


def test_shared_prefix_is_computed_once(tiny_model, cases):
    prompt = next(prompt for prompt in cases.prompts if len(prompt) == 64)
    with make_llm(tiny_model, **LARGE_POOL) as llm:
        first, again = (
            llm.generate([prompt], params(), use_tqdm=False)[0],
            llm.generate([prompt], params(), use_tqdm=False)[0],
        )

    assert first.num_cached_tokens == 0
    # The last token is computed anew, for its logits, and with it its block.
    assert again.num_cached_tokens == 48
    assert first.token_ids == again.token_ids == cases.tokens[cases.prompts.index(prompt)]


def test_prefix_caching_that_is_off_caches_nothing(tiny_model, cases):
    with make_llm(tiny_model, **LARGE_POOL, enable_prefix_caching=False) as llm:
        for _ in range(2):
            completions = llm.generate(cases.prompts[:3], params(), use_tqdm=False)

    assert [completion.num_cached_tokens for completion in completions] == [0, 0, 0]


def seeded_params(num_prompts):
    return [params(temperature=0.6, seed=seed) for seed in range(num_prompts)]


@pytest.fixture(scope="module")
def seeded_tokens(tiny_model, cases):
    """Every fifth prompt's tokens, drawn alone."""
    sampling_params = seeded_params(NUM_PROMPTS)
    with make_llm(tiny_model, **LARGE_POOL, enable_prefix_caching=False) as llm:
        return [
            generate(llm, [cases.prompts[index]], sampling_params[index])[0]
            for index in range(0, NUM_PROMPTS, 5)
        ]


@pytest.mark.parametrize("variant", ["tiny budgets", "all at once", "chunks of 7"])
def test_seeded_draws_depend_on_nothing_else_in_the_batch(
    tiny_model, cases, seeded_tokens, variant
):
    with make_llm(tiny_model, **VARIANTS[variant]) as llm:
        tokens = generate(llm, cases.prompts, seeded_params(NUM_PROMPTS))

    assert tokens[::5] == seeded_tokens


def test_another_seed_draws_other_tokens(tiny_model, cases, seeded_tokens):
    prompt = cases.prompts[20]
    with make_llm(tiny_model, **LARGE_POOL) as llm:
        drawn = generate(
            llm, [prompt] * 8, [params(temperature=0.6, seed=seed) for seed in range(8)]
        )

    assert len({tuple(tokens) for tokens in drawn}) == 8
    assert seeded_tokens != cases.tokens[::5]


def test_stop_token_ends_a_completion_and_is_part_of_it(tiny_model, cases):
    tokens = cases.tokens[0]
    stop = next(token for token in tokens if tokens.index(token) >= 3)
    expected = tokens[: tokens.index(stop) + 1]

    with make_llm(tiny_model, **LARGE_POOL) as llm:
        (completion,) = llm.generate(
            [cases.prompts[0]], params(stop_token_ids=frozenset({stop})), use_tqdm=False
        )

    assert completion.token_ids == expected
    assert completion.finish_reason is FinishReason.STOP


def test_length_ends_a_completion(tiny_model, cases):
    with make_llm(tiny_model, **LARGE_POOL, max_model_len=70) as llm:
        limited, unlimited = llm.generate(
            [cases.prompts[0], random_tokens(random.Random(0), 60, 300)],
            [params(max_tokens=3), params(max_tokens=None)],
            use_tqdm=False,
        )

    assert limited.token_ids == cases.tokens[0][:3]
    assert len(unlimited.token_ids) == 10
    assert limited.finish_reason is unlimited.finish_reason is FinishReason.LENGTH


def test_no_prompts_give_no_completions(tiny_model):
    with make_llm(tiny_model, num_blocks=4) as llm:
        assert llm.generate([], params(), use_tqdm=False) == []


@pytest.mark.parametrize(
    ("prompt", "changes", "reason"),
    [
        ([], {}, Reason.EMPTY_PROMPT),
        ([1, 300], {}, Reason.TOKEN_OUT_OF_RANGE),
        ([-1], {}, Reason.TOKEN_OUT_OF_RANGE),
        ([2**40], {}, Reason.TOKEN_OUT_OF_RANGE),
        ([1.5], {}, Reason.TOKEN_OUT_OF_RANGE),
        ([1] * 60, {"max_tokens": 500}, Reason.PROMPT_TOO_LONG),
        ([1], {"temperature": -0.5}, Reason.BAD_SAMPLING_PARAMS),
        ([1], {"temperature": float("nan")}, Reason.BAD_SAMPLING_PARAMS),
        ([1], {"seed": 2**63}, Reason.BAD_SAMPLING_PARAMS),
        ([1], {"max_tokens": 0}, Reason.BAD_SAMPLING_PARAMS),
    ],
)
def test_bad_request_is_refused_before_any_work(tiny_model, cases, prompt, changes, reason):
    with make_llm(tiny_model, **LARGE_POOL) as llm:
        with pytest.raises(InvalidRequest, match="prompt 1: ") as refusal:
            generate(llm, [[1, 2], prompt], [params(), params(**changes)])

        assert refusal.value.reason is reason
        assert generate(llm, cases.prompts[:1]) == cases.tokens[:1]


def test_each_prompt_is_read_once(tiny_model, monkeypatch):
    read = []
    check_token_ids = Limits.check_token_ids

    def note(self, field, token_ids, *part):
        read.append((field, list(token_ids)))
        check_token_ids(self, field, token_ids, *part)

    monkeypatch.setattr(Limits, "check_token_ids", note)
    with make_llm(tiny_model, num_blocks=4) as llm:
        generate(llm, [[1, 2], [3]], params(max_tokens=2))

    assert [ids for field, ids in read if field == "prompt_token_ids"] == [[1, 2], [3]]


def test_parameters_must_be_as_many_as_prompts(tiny_model):
    with make_llm(tiny_model, num_blocks=4) as llm, pytest.raises(InvalidRequest, match="2 entr"):
        llm.generate([[1]], [params(), params()])


def test_interrupt_closes_cleanly(tiny_model, cases, monkeypatch):
    llm = make_llm(tiny_model, **LARGE_POOL)
    step, calls = llm._core.step, []

    def step_thrice():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm._core, "step", step_thrice)
    with pytest.raises(KeyboardInterrupt):
        generate(llm, cases.prompts)

    with pytest.raises(RuntimeError, match="closed"):
        generate(llm, cases.prompts)
    llm.close()


def test_progress_bar_goes_to_stderr(tiny_model, capsys):
    with make_llm(tiny_model, **LARGE_POOL) as llm:
        llm.generate([[1, 2], [3]], params(max_tokens=2))

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Generating" in captured.err
    assert "2/2" in captured.err


def test_unknown_option_is_named(tiny_model):
    with pytest.raises(StartupError, match="unknown options: max_num_sequences"):
        make_llm(tiny_model, max_num_sequences=3)


PRECISIONS = {"float32": (1e-4, 0.01), "bfloat16": (0.1, 0.15)}
"""Largest lack of a chosen logit against the best one, and largest share of tokens with any."""


def check_greedy_up_to_ties(model, completions, cases, dtype):
    """Checks that each token is transformers' best one behind the tokens before it, or nearly."""
    tolerance, max_share = PRECISIONS[dtype]
    num_near_ties = num_tokens = 0
    for prompt, token_ids in zip(cases.prompts, completions, strict=True):
        assert len(token_ids) == NUM_TOKENS
        logits = model.logits(prompt + token_ids)[len(prompt) - 1 : -1]  # [NUM_TOKENS, vocab_size]
        chosen = logits.gather(1, torch.tensor(token_ids)[:, None])[:, 0]
        gaps = logits.max(dim=1).values - chosen
        assert gaps.max() <= tolerance
        num_near_ties += int((gaps > 0).sum())
        num_tokens += len(token_ids)
    assert num_near_ties <= max_share * num_tokens


def test_bfloat16_on_the_cpu_is_near_the_reference(tiny_model, cases):
    with make_llm(tiny_model, dtype="bfloat16", **SMALL_POOL) as llm:
        completions = generate(llm, cases.prompts)

    assert llm.info.dtype == "bfloat16"
    check_greedy_up_to_ties(tiny_model, completions, cases, "bfloat16")


@pytest.fixture(scope="module")
def cuda_model(tmp_path_factory):
    return make_model(
        tmp_path_factory.mktemp("cuda") / "model", CUDA_SHAPES[1], dtype=torch.bfloat16
    )


@pytest.fixture(scope="module")
def cuda_cases(cuda_model):
    generator = make_prompts(cuda_model.vocab_size)
    return Cases([next(generator) for _ in range(NUM_PROMPTS)], [])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_on_cuda_equal_transformers_up_to_ties(
    cuda_model, cuda_cases, variant, dtype
):
    with make_llm(cuda_model, device="cuda", dtype=dtype, **VARIANTS[variant]) as llm:
        completions = generate(llm, cuda_cases.prompts)

        assert (llm.num_preemptions > 0) == (variant in PREEMPTING)
    check_greedy_up_to_ties(cuda_model, completions, cuda_cases, dtype)


@pytest.mark.gpu
def test_seeded_draws_on_cuda_repeat(cuda_model, cuda_cases):
    with make_llm(cuda_model, device="cuda", **LARGE_POOL, enable_prefix_caching=False) as llm:
        first, again = (
            generate(llm, cuda_cases.prompts, seeded_params(NUM_PROMPTS)) for _ in range(2)
        )

    assert first == again


@pytest.mark.gpu
def test_pool_on_cuda_is_sized_from_free_memory(cuda_model, cuda_cases):
    total = torch.cuda.get_device_properties(0).total_memory
    with make_llm(cuda_model, device="cuda", gpu_memory_utilization=0.1, max_num_seqs=16) as llm:
        assert llm.info.num_blocks > 1000
        assert torch.cuda.memory_reserved() < 0.1 * total
        generate(llm, cuda_cases.prompts)
        assert torch.cuda.memory_reserved() < 0.1 * total
