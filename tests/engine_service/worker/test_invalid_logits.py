"""A model that yields NaN for one request: that one fails, and those beside it do not notice."""

import pytest
import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.types import (
    Request,
    int32_array,
)
from engine_service.errors import RequestError
from engine_service.llm import LLM
from engine_service.worker.executor import start_executor
from protos.wire.reason import Reason
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.tiny_models import CUDA_SHAPES, SHAPES, make_model

POISONED = 7
"""A token whose embedding is NaN."""

GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, max_tokens=20, ignore_eos=True, seed=5)


class Engine:
    """A core whose steps overlap, as on a GPU, over a model that is spoilt after its load."""

    def __init__(self, folder, device, value):
        options = SchedulerOptions(max_num_seqs=4, max_num_batched_tokens=64, max_steps_in_flight=2)
        executor, info = start_executor(
            ModelOptions(model=str(folder), device=device),
            CacheOptions(block_size=16, num_blocks=40),
            options,
        )
        self.core = EngineCore(info, options, executor)
        self.embedding = executor._worker._runner._model.embed_tokens.weight
        self.sound_row = self.embedding[POISONED].clone()
        self.spoil(value)

    @torch.inference_mode()
    def spoil(self, value):
        self.embedding[POISONED] = value

    def run(self, requests):
        """Returns tokens, ends, failures and the number of failures that steps told, by number."""
        for number, (prompt, params) in requests.items():
            self.core.add(
                Request(
                    request_id=number, prompt_token_ids=int32_array(prompt), sampling_params=params
                )
            )
        tokens, finished, failures, num_invalid = {}, set(), {}, 0
        while self.core.has_work:
            output = self.core.step()
            # Every token counts as one.
            for number, token_id in zip(output.request_ids, output.token_ids, strict=True):
                tokens.setdefault(number, []).append(token_id)
            finished |= {finish.request_id for finish in output.finishes}
            failures |= {failure.request_id: failure.error for failure in output.failures}
            num_invalid += output.stats.num_invalid_logits
        return tokens, finished, failures, num_invalid


@pytest.fixture(
    scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=str
)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, device):
    """An untied model, lest a row of the embedding spoil everybody's logits."""
    shape = SHAPES[1] if device == "cpu" else CUDA_SHAPES[1]
    return make_model(tmp_path_factory.mktemp("untied") / "model", shape).folder


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_only_the_request_whose_logits_are_nan_fails(folder, device, params, value):
    engine = Engine(folder, device, value)
    sound = {1: ([3, 4, 5], params), 2: ([9] * 20, params)}
    expected, _, _, _ = engine.run(sound)

    tokens, finished, failures, num_invalid = engine.run(
        {3: sound[1], 4: ([1, POISONED, 2], params), 5: sound[2]}
    )

    assert (tokens[3], tokens[5]) == (expected[1], expected[2])
    assert finished == {3, 5}
    assert 4 not in tokens
    assert list(failures) == [4]
    assert num_invalid == 1
    assert isinstance(failures[4], RequestError)
    assert failures[4].reason is Reason.INTERNAL
    assert "logits for position 3 are NaN or infinite" in failures[4].message
    assert engine.core.scheduler.pool.num_free_blocks == 40


def test_logits_that_become_nan_end_what_was_generated_so_far(folder, device):
    engine = Engine(folder, device, 0.0)
    tokens, *_ = engine.run({1: ([3, 4, 5], GREEDY)})
    # The first token that the model has not read before.
    index = next(i for i, token in enumerate(tokens[1]) if token not in (3, 4, 5))
    with torch.inference_mode():
        engine.embedding[tokens[1][index]] = torch.nan

    after, finished, failures, _ = engine.run({2: ([3, 4, 5], GREEDY)})

    assert after[2] == tokens[1][: index + 1]
    assert not finished
    assert list(failures) == [2]


def test_prefix_that_was_spoilt_once_is_computed_anew(folder, device):
    engine = Engine(folder, device, torch.nan)
    prompt = [POISONED, *range(20, 60)]
    _, _, failures, _ = engine.run({1: (prompt, GREEDY)})
    assert list(failures) == [1]
    assert not engine.core.scheduler.pool.findable_hashes()

    engine.spoil(engine.sound_row)
    tokens, finished, failures, _ = engine.run({2: (prompt, GREEDY)})

    assert (finished, failures) == ({2}, {})
    assert len(tokens[2]) == 20


def test_llm_raises_what_the_request_failed_with(folder, device):
    with LLM(str(folder), device=device, num_blocks=40) as llm:
        embedding = llm._core._executor._worker._runner._model.embed_tokens.weight
        with torch.inference_mode():
            embedding[POISONED] = torch.nan
        with pytest.raises(RequestError, match="NaN or infinite"):
            llm.generate([[1, POISONED]], GREEDY, use_tqdm=False)
