"""Logits of a model that several ranks share, against transformers; ranks are threads here."""

import random
from contextlib import closing

import pytest
import torch

from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.loading import build_model, fill_randomly, load_weights
from engine_service.worker.slot_sampling import NOTHING
from tests.engine_service.plans import NewSequence, Row, make_plan
from tests.engine_service.tensor_parallel.thread_ranks import RankThreads
from tests.engine_service.tiny_models import (
    GEMMA3_ROPE,
    LLAMA3_ROPE,
    Shape,
    make_model,
    random_tokens,
)
from tests.engine_service.worker.inputs import prepare
from tests.engine_service.worker.test_model_runner import CHECKS, Steps

SHAPES = {
    "untied": Shape(num_heads=4, num_kv_heads=4, head_dim=16, is_tied=False),
    "ranks share a head, odd vocabulary": Shape(
        num_heads=8, num_kv_heads=2, head_dim=16, is_tied=True, vocab_size=301
    ),
    "Llama": Shape(
        family="Llama", num_heads=4, num_kv_heads=2, head_dim=16, is_tied=False, rope=LLAMA3_ROPE
    ),
    "a window": Shape(
        family="Mistral",
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        is_tied=False,
        fields={"sliding_window": 9},
    ),
    "norms behind the sums": Shape(
        family="Gemma3",
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        is_tied=True,
        rope=GEMMA3_ROPE,
        fields={"sliding_window": 9, "sliding_window_pattern": 2},
    ),
    "biases": Shape(
        family="Qwen2",
        num_heads=8,
        num_kv_heads=2,
        head_dim=16,
        is_tied=False,
        hidden_size=128,
        rope=LLAMA3_ROPE,
    ),
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def tiny(request, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("ranks") / "model", request.param)


SHARDED_CHECKS = [check for check in CHECKS if "no_token" not in check.__name__]


@pytest.fixture(params=[(2, 1), (2, 2), (4, 1)], ids=["2 ranks", "2 ranks, 2 lanes", "4 ranks"])
def threads(request):
    num_ranks, num_lanes = request.param
    threads = RankThreads(num_ranks, num_lanes)
    yield threads
    threads.close()


class RankedSteps:
    """As `Steps`, with a part of the model in each rank."""

    def __init__(self, folder, threads):
        self._threads = threads
        self.steps = threads.run(lambda rank: Steps(folder, ranks=threads.ranks[rank]))
        self.runner, self.batch = self, self.steps[0].batch

    def logits(self, rows, new=None):
        parts = self._threads.run(lambda rank: self.steps[rank].logits(rows, new))
        return torch.cat(parts, dim=1)

    def sampled(self, plan):
        def run(rank):
            steps = self.steps[rank]
            with torch.inference_mode():
                return steps.runner.run(prepare(steps.batch, plan), NOTHING).token_ids.tolist()

        return self._threads.run(run)


@pytest.mark.parametrize("check_logits", SHARDED_CHECKS)
def test_logits_equal_transformers(tiny, threads, check_logits):
    prompt = random_tokens(random.Random(1), 37, tiny.vocab_size)

    check_logits(tiny, RankedSteps(tiny.folder, threads), prompt)


@pytest.mark.parametrize("check_logits", SHARDED_CHECKS)
def test_logits_of_eight_ranks_that_share_four_heads(tmp_path, check_logits):
    shape = Shape(num_heads=8, num_kv_heads=4, head_dim=16, is_tied=True, vocab_size=301)
    tiny = make_model(tmp_path / "model", shape)
    prompt = random_tokens(random.Random(1), 37, tiny.vocab_size)

    with closing(RankThreads(8)) as threads:
        check_logits(tiny, RankedSteps(tiny.folder, threads), prompt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_ranks_draw_the_token_of_a_single_one(tiny, threads, temperature):
    prompts = [random_tokens(random.Random(seed), 20, tiny.vocab_size) for seed in range(4)]
    new = {
        slot: NewSequence(prompt, [2 * slot + 1, 2 * slot + 2], temperature, seed=slot)
        for slot, prompt in enumerate(prompts)
    }
    plan = make_plan([Row(slot, 0, 20) for slot in new], new)
    alone = Steps(tiny.folder)
    with torch.inference_mode():
        expected = alone.runner.run(prepare(alone.batch, plan), NOTHING).token_ids.tolist()

    assert RankedSteps(tiny.folder, threads).sampled(plan) == [expected] * len(threads.ranks)


def _parameters(folder, threads, fill):
    checkpoint = resolve_checkpoint(str(folder))
    config = parse_config(checkpoint.read_config())

    def load(rank):
        ranks = threads.ranks[rank] if threads else None
        arguments = [config, 64, torch.float32, torch.device("cpu")]
        model = build_model(*arguments, *([ranks] if ranks else []))
        return model, fill(model, checkpoint, ranks)

    return threads.run(load) if threads else [load(0)]


def test_fingerprint_of_the_weights_is_that_of_a_single_rank(tiny, threads):
    def fill(model, checkpoint, ranks):
        if ranks is None:
            return load_weights(model, checkpoint)
        return load_weights(
            model,
            checkpoint,
            rank=ranks.rank,
            num_ranks=ranks.size,
            sum_over_ranks=ranks.all_reduce,
        )

    [(_, alone)] = _parameters(tiny.folder, None, fill)
    assert {digest for _, digest in _parameters(tiny.folder, threads, fill)} == {alone}


def test_random_weights_are_parts_of_those_of_a_single_rank(tiny, threads):
    def fill(model, checkpoint, ranks):
        fill_randomly(model, 5, 0.1)

    [(alone, _)] = _parameters(tiny.folder, None, fill)
    whole = {slot.name: slot.target for slot in alone.weight_slots()}
    for model, _ in _parameters(tiny.folder, threads, fill):
        for slot in model.weight_slots():
            expected = whole[slot.name]
            if slot.shard is not None:
                size = slot.target.shape[slot.shard.dim]
                expected = expected.narrow(slot.shard.dim, slot.shard.begin, size)
            assert torch.equal(slot.target, expected), slot.name
