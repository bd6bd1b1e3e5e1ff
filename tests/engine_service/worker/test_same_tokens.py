"""The tokens are the same whatever runs the steps, and however they are cut."""

import random

import pytest
import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.types import (
    Request,
    int32_array,
)
from engine_service.worker.cuda_graphs import StepGraph, StepGraphs
from engine_service.worker.executor import start_executor
from engine_service.worker.graph_sizes import decode_sizes, sizes_with_prompts
from engine_service.worker.worker import Worker
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.sampling_choices import random_choices
from tests.engine_service.tiny_models import CUDA_SHAPES, make_model, random_tokens

BLOCK_SIZE = 16
SHAPE = CUDA_SHAPES[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("graphs") / "model", SHAPE)


def make_requests(vocab_size, num_requests=14):
    rng = random.Random(5)
    shared = random_tokens(rng, 40, vocab_size)
    return [
        Request(
            request_id=number,
            prompt_token_ids=int32_array(
                shared[: rng.choice((0, 20, 40))]
                + random_tokens(rng, rng.randint(1, 60), vocab_size)
            ),
            sampling_params=SamplingParams(
                max_tokens=rng.randint(6, 40),
                ignore_eos=True,
                **random_choices(rng, vocab_size),
                seed=number,
            ),
        )
        for number in range(num_requests)
    ]


class PaddedStep(StepGraph):
    """Runs a step at its padded sizes, kernel by kernel, as its graphs would."""

    def replay(self, rows, wants, before_draw=None):
        self._rows.packed.copy_(rows.packed)
        return self._runner.run(self._batch.read(self._rows, self._bounds), wants, before_draw)


def pad_steps(executor, max_num_seqs, max_num_batched_tokens):
    """Makes an executor on the CPU run all steps at the sizes of graphs."""
    worker = executor._worker
    batch, runner = worker._batch, worker._runner
    max_num_rows = min(max_num_seqs, max_num_batched_tokens)
    graphs = StepGraphs(
        [PaddedStep.of_decodes(size, runner, batch) for size in decode_sizes(max_num_rows)],
        {
            size: PaddedStep.of_tokens(size, runner, batch)
            for size in sizes_with_prompts(max_num_rows, max_num_batched_tokens)
        },
    )
    executor._worker = Worker(batch, runner, graphs, batch.device)


def run_core(core, requests):
    """Returns each request's tokens, and how many preemptions there were."""
    for request in requests:
        core.add(request)
    tokens = {request.request_id: [] for request in requests}
    num_preemptions = 0
    while core.has_work:
        output = core.step()
        num_preemptions += output.stats.num_preemptions
        for request_id, token_id in zip(output.request_ids, output.token_ids, strict=True):
            tokens[request_id].append(token_id)
    assert core.scheduler.pool.statistics().num_used_blocks == 0
    core.close()
    return tokens, num_preemptions


@pytest.fixture(scope="module")
def expected(tiny):
    """The tokens of steps of any size, with blocks for all requests."""
    plain = SchedulerOptions(max_num_seqs=16)
    executor, info = start_executor(
        ModelOptions(model=str(tiny.folder), device="cpu"),
        CacheOptions(block_size=BLOCK_SIZE, num_blocks=200),
        plain,
    )
    return run_core(EngineCore(info, plain, executor), make_requests(tiny.vocab_size))[0]


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
@pytest.mark.parametrize(
    "sizes",
    [(16, 512, 200), (5, 16, 200), (70, 130, 200), (16, 512, 9), (1, 1, 200), (3, 2, 200)],
)
def test_tokens_are_the_same_when_steps_are_padded(tiny, expected, sizes, max_steps_in_flight):
    max_num_seqs, max_num_batched_tokens, num_blocks = sizes
    requests = make_requests(tiny.vocab_size)
    model = ModelOptions(model=str(tiny.folder), device="cpu")
    cache = CacheOptions(block_size=BLOCK_SIZE, num_blocks=num_blocks)
    options = SchedulerOptions(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_steps_in_flight=max_steps_in_flight,
    )
    executor, info = start_executor(model, cache, options)
    pad_steps(executor, max_num_seqs, max_num_batched_tokens)

    tokens, num_preemptions = run_core(EngineCore(info, options, executor), requests)

    assert tokens == expected
    assert (num_preemptions > 0) == (num_blocks == 9)


@pytest.mark.parametrize("is_padded", [False, True], ids=["eager", "as graphs"])
def test_tokens_are_the_same_when_many_rows_are_sorted(tiny, is_padded):
    requests = make_requests(tiny.vocab_size, num_requests=80)
    # So that all decode together, once their prompts are computed in one step.
    num_tokens = sum(len(request.prompt_token_ids) for request in requests)
    assert min(request.sampling_params.max_tokens for request in requests) > 4

    def run(max_num_seqs):
        options = SchedulerOptions(max_num_seqs=max_num_seqs, max_num_batched_tokens=num_tokens)
        executor, info = start_executor(
            ModelOptions(model=str(tiny.folder), device="cpu"),
            CacheOptions(block_size=BLOCK_SIZE, num_blocks=500),
            options,
        )
        if is_padded:
            pad_steps(executor, max_num_seqs, num_tokens)
        return run_core(EngineCore(info, options, executor), requests)[0]

    assert run(80) == run(20)


def generate(  # noqa: PLR0913
    folder,
    requests,
    *,
    dtype="float32",
    block_size=BLOCK_SIZE,
    num_blocks=200,
    enforce_eager,
    **scheduler,
):
    """Returns each request's tokens, and how many preemptions there were."""
    options = SchedulerOptions(**scheduler)
    executor, info = start_executor(
        ModelOptions(model=str(folder), device="cuda", dtype=dtype, enforce_eager=enforce_eager),
        CacheOptions(block_size=block_size, num_blocks=num_blocks),
        options,
    )
    return run_core(EngineCore(info, options, executor), requests)


@pytest.fixture(scope="module")
def plain(tiny):
    """Tokens of steps launched kernel by kernel, one after the other."""
    tokens, _ = generate(
        tiny.folder,
        make_requests(tiny.vocab_size),
        enforce_eager=True,
        max_steps_in_flight=1,
        max_num_seqs=16,
    )
    return tokens


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("enforce_eager", "max_steps_in_flight", "max_num_seqs", "max_num_batched_tokens"),
    [
        (True, 2, 16, 512),
        (True, 3, 5, 16),
        (False, 1, 16, 512),
        (False, 2, 16, 512),
        (False, 2, 16, 48),
        (False, 2, 1, 512),
        (False, 2, 3, 16),
        (False, 3, 16, 16),
    ],
)
def test_float32_tokens_are_the_same_whatever_runs_them(  # noqa: PLR0913
    tiny, plain, enforce_eager, max_steps_in_flight, max_num_seqs, max_num_batched_tokens
):
    tokens, _ = generate(
        tiny.folder,
        make_requests(tiny.vocab_size),
        enforce_eager=enforce_eager,
        max_steps_in_flight=max_steps_in_flight,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )

    assert tokens == plain


@pytest.mark.gpu
def test_many_decodes_beside_prompts_are_not_disturbed(tiny):
    """More rows decode than a tile of the prompts' attention has tokens."""
    rng = random.Random(8)
    requests = [
        Request(
            request_id=number,
            prompt_token_ids=int32_array(random_tokens(rng, rng.randint(1, 30), tiny.vocab_size)),
            sampling_params=SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
        )
        for number in range(150)
    ]

    # A small budget: prompts come in over many steps, beside ever more decodes.
    tokens = {
        eager: generate(
            tiny.folder,
            requests,
            enforce_eager=eager,
            num_blocks=800,
            max_num_seqs=150,
            max_num_batched_tokens=200,
        )[0]
        for eager in (False, True)
    }

    for request in requests[::10]:
        expected, gap = tiny.greedy(list(request.prompt_token_ids), 40)
        assert gap > 1e-4
        assert tokens[False][request.request_id] == expected
    assert tokens[False] == tokens[True]


@pytest.mark.gpu
@pytest.mark.parametrize("max_steps_in_flight", [1, 2, 3])
def test_tokens_are_the_same_when_sequences_are_preempted(tiny, plain, max_steps_in_flight):
    tokens, num_preemptions = generate(
        tiny.folder,
        make_requests(tiny.vocab_size),
        enforce_eager=False,
        num_blocks=9,
        max_steps_in_flight=max_steps_in_flight,
        max_num_seqs=16,
    )

    assert num_preemptions > 0
    assert tokens == plain


def greedy_requests(tiny, prompt_lens):
    rng = random.Random(3)
    return [
        Request(
            request_id=number,
            prompt_token_ids=int32_array(random_tokens(rng, prompt_len, tiny.vocab_size)),
            sampling_params=SamplingParams(temperature=0, max_tokens=60, ignore_eos=True),
        )
        for number, prompt_len in enumerate(prompt_lens)
    ]


def check_differences_are_ties(tiny, requests, tokens, others):
    """Where two runs part first, both tokens are within a rounding error of the best."""
    num_ties = 0
    for request in requests:
        ours, theirs = tokens[request.request_id], others[request.request_id]
        places = [place for place in range(60) if ours[place] != theirs[place]]
        if not places:
            continue
        num_ties += 1
        known = [*request.prompt_token_ids, *ours[: places[0]]]
        logits = tiny.logits(known)[-1]
        gap = (logits[ours[places[0]]] - logits[theirs[places[0]]]).abs()
        # That of bfloat16; the logits are as float32 computes them.
        assert gap < 0.02 * logits.abs().max()
    assert num_ties < len(requests)


@pytest.mark.gpu
def test_bfloat16_graph_differs_from_single_kernels_only_where_logits_tie(tmp_path):
    tiny = make_model(tmp_path / "model", CUDA_SHAPES[2], dtype=torch.bfloat16)
    requests = greedy_requests(tiny, [30] * 32)
    options = {"dtype": "bfloat16", "max_num_seqs": 32}
    eager, _ = generate(tiny.folder, requests, enforce_eager=True, max_steps_in_flight=1, **options)
    graphed, _ = generate(
        tiny.folder, requests, enforce_eager=False, max_steps_in_flight=2, **options
    )
    check_differences_are_ties(tiny, requests, graphed, eager)


@pytest.mark.gpu
def test_long_prompts_in_graphs_differ_from_small_chunks_only_where_logits_tie(tmp_path):
    """On Hopper they have an attention kernel of their own, beside the decodes of others."""
    tiny = make_model(tmp_path / "model", CUDA_SHAPES[1], dtype=torch.bfloat16)
    requests = greedy_requests(tiny, [400, 30] * 8)
    options = {"dtype": "bfloat16", "max_num_seqs": 16, "block_size": 64}
    small, _ = generate(
        tiny.folder, requests, enforce_eager=True, max_num_batched_tokens=256, **options
    )
    large, _ = generate(
        tiny.folder, requests, enforce_eager=False, max_num_batched_tokens=1_000, **options
    )
    check_differences_are_ties(tiny, requests, large, small)
