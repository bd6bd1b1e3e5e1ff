"""Logprobs of tokens and of prompts are those of transformers' logits, however steps are cut."""

import random

import pytest
import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.types import Request, int32_array
from engine_service.worker.executor import start_executor
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.tiny_models import CUDA_SHAPES, make_model, random_tokens

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("logprobs") / "model", CUDA_SHAPES[1])


def run(folder, requests, device, num_blocks, max_num_batched_tokens):
    """Returns per request its tokens, their logprobs, and those of its prompt by position."""
    options = SchedulerOptions(max_num_seqs=4, max_num_batched_tokens=max_num_batched_tokens)
    executor, info = start_executor(
        ModelOptions(model=str(folder), device=device, dtype="float32"),
        CacheOptions(block_size=16, num_blocks=num_blocks),
        options,
    )
    core = EngineCore(info, options, executor)
    for request in requests:
        core.add(request)
    tokens, logprobs, of_prompts = ({r.request_id: [] for r in requests} for _ in range(3))
    while core.has_work:
        output = core.step()
        for request_id, token_id in zip(output.request_ids, output.token_ids, strict=True):
            tokens[request_id].append(token_id)
        for request_id, _, part in output.logprobs or ():
            logprobs[request_id].append(part)
        for request_id, position, part in output.prompt_logprobs or ():
            of_prompts[request_id].append((position, part))
    core.close()
    return tokens, logprobs, of_prompts


def check(part, logits, token_ids, num_top):
    """Compares logprobs with those of the logits before each token."""
    expected = logits.log_softmax(-1)
    assert len(part.logprobs) == len(token_ids)
    own = expected[torch.arange(len(token_ids)), torch.tensor(token_ids)]
    torch.testing.assert_close(torch.tensor(part.logprobs), own, rtol=0, atol=1e-4)
    if num_top:
        tops = torch.tensor(part.top_token_ids).view(-1, num_top)
        best = expected.topk(num_top).values
        torch.testing.assert_close(expected.gather(1, tops.long()), best, rtol=0, atol=1e-4)
        found = torch.tensor(part.top_logprobs).view(-1, num_top)
        torch.testing.assert_close(found, best, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("num_blocks", "budget"), [(100, 512), (8, 16)], ids=["roomy", "tight"])
def test_logprobs_are_those_of_the_raw_logits(tiny, device, num_blocks, budget):
    rng = random.Random(3)
    shared = random_tokens(rng, 33, tiny.vocab_size)
    prompts = [[*shared, *random_tokens(rng, length, tiny.vocab_size)] for length in (1, 9, 20, 4)]
    wanted = [(2, None), (0, 5), (5, 3), (None, 0)]
    requests = [
        Request(
            request_id=number,
            prompt_token_ids=int32_array(prompt),
            sampling_params=SamplingParams(
                temperature=0.9,
                seed=number,
                max_tokens=12,
                top_k=20,
                repetition_penalty=1.2,
                ignore_eos=True,
                logprobs=of_tokens,
                prompt_logprobs=of_prompt,
            ),
        )
        for number, (prompt, (of_tokens, of_prompt)) in enumerate(zip(prompts, wanted, strict=True))
    ]

    tokens, logprobs, of_prompts = run(tiny.folder, requests, device, num_blocks, budget)

    for number, (prompt, (of_tokens, of_prompt)) in enumerate(zip(prompts, wanted, strict=True)):
        logits = tiny.logits([*prompt, *tokens[number]])
        generated = logits[len(prompt) - 1 : -1]
        if of_tokens is None:
            assert not logprobs[number]
        for index, part in enumerate(logprobs[number]):
            check(part, generated[index : index + 1], tokens[number][index : index + 1], of_tokens)
        position = 1
        for first, part in of_prompts[number]:
            assert first == position
            position += len(part.logprobs)
            check(part, logits[first - 1 : position - 1], prompt[first:position], of_prompt)
        assert position == (1 if of_prompt is None else len(prompt))


@pytest.mark.parametrize("device", DEVICES)
def test_a_prompt_is_scored_without_generating(tiny, device):
    prompt = random_tokens(random.Random(4), 40, tiny.vocab_size)
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    request = Request(request_id=0, prompt_token_ids=int32_array(prompt), sampling_params=params)

    tokens, _, of_prompts = run(tiny.folder, [request], device, 50, 16)

    assert tokens == {0: []}
    logits = tiny.logits(prompt)
    assert [first for first, _ in of_prompts[0]] == [1, 17, 33]
    for first, part in of_prompts[0]:
        end = first + len(part.logprobs)
        check(part, logits[first - 1 : end - 1], prompt[first:end], 2)
