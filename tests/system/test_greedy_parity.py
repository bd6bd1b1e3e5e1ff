"""Greedy text through a router and two engines is what transformers generates.

The prompts keep the two best logits of the reference's path apart, so that rounding, which differs
with the shape of a batch, cannot decide between two tokens.
"""

import asyncio
import random
import re
from contextlib import asynccontextmanager

import grpc
import pytest
import tokenizers

from examples.demo.load import wait_for_engines
from examples.demo.services import Services, http_get
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from tests.engine_service.tiny_models import Shape, make_model, random_tokens
from tests.fakes import small_tokenizer

BLOCK_SIZE = 16
MIN_GAP = 1e-3
NUM_PROMPTS = 50
MAX_TOKENS = 40
SHAPE = Shape(num_heads=4, num_kv_heads=2, head_dim=32, is_tied=False, vocab_size=512)
EDGE_LENGTHS = [BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 3 * BLOCK_SIZE]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("parity") / "model", SHAPE)
    small_tokenizer.save(model.folder)
    return model


@pytest.fixture(scope="module")
def cases(model):
    """Returns 50 prompts with the reference's tokens; some share a prefix of several blocks."""
    generator = random.Random(0)
    shared = random_tokens(generator, 4 * BLOCK_SIZE, model.vocab_size)

    def draw(index):
        if index < 2 * len(EDGE_LENGTHS):
            length = EDGE_LENGTHS[index % len(EDGE_LENGTHS)]
            return random_tokens(generator, length, model.vocab_size)
        if index % 2:
            return shared + random_tokens(generator, generator.randint(1, 40), model.vocab_size)
        return random_tokens(generator, generator.randint(1, 120), model.vocab_size)

    cases = {}
    while missing := set(range(NUM_PROMPTS)) - cases.keys():
        prompts = {index: draw(index) for index in missing}
        answers = model.greedy_batch(list(prompts.values()), MAX_TOKENS)
        for (index, prompt), (tokens, gap) in zip(prompts.items(), answers, strict=True):
            if gap >= MIN_GAP:
                cases[index] = prompt, tokens
    return list(cases.values())


async def generate(stub, prompt):
    request = router_pb2.GenerateRequest(
        token_ids=router_pb2.TokenIds(ids=prompt),
        # The reference knows of no token that ends a text; the tokenizer names one.
        sampling_params=router_pb2.SamplingParams(
            temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True
        ),
    )
    responses = [response async for response in stub.Generate(request, timeout=90)]
    assert responses[-1].finish.completion_token_count == MAX_TOKENS
    tokens = [token for response in responses for token in response.token_ids]
    cached = responses[0].admission.cached_token_count
    return tokens, "".join(response.text for response in responses), cached


def metric(service, name):
    text = http_get(service.operations_address, "/metrics")
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


# Two engines with the same tiny budgets; what differs must change no token.
VARIANTS = {
    "prefix caching, small chunks": ["--max-num-batched-tokens", "24", "--max-num-seqs", "6"],
    "no prefix caching, large chunks": ["--no-enable-prefix-caching", "--max-num-seqs", "16"],
}
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


@asynccontextmanager
async def serving(model, folder, options):
    """Runs two engines and a router; yields the engines and a stub of the router."""
    arguments = ["engine_service", "--model", str(model.folder), "--device", "cpu"]
    # The longest sequence takes 10 blocks, so a pool of 12 holds few of those that may run.
    arguments += ["--cpu-threads", "1", "--block-size", str(BLOCK_SIZE), "--num-blocks", "12"]
    async with Services(folder) as services:
        engines = [services.start(f"engine-{i}", [*arguments, *options]) for i in range(2)]
        addresses = ",".join(engine.address for engine in engines)
        router = services.start("router", ["router", "--engines", addresses])
        await services.wait_ready([*engines, router], 90, lambda service, state: None)
        # A router is ready with the first of them, which would then get all requests.
        await wait_for_engines(router.address, len(engines))
        async with grpc.aio.insecure_channel(router.address) as channel:
            yield engines, router_pb2_grpc.RouterServiceStub(channel)


@each_variant
async def test_text_through_router_and_engines_equals_transformers(model, cases, tmp_path, options):
    decode = tokenizers.Tokenizer.from_file(str(model.folder / "tokenizer.json")).decode
    async with serving(model, tmp_path, options) as (engines, stub):
        answers = await asyncio.gather(*(generate(stub, prompt) for prompt, _ in cases))
        preemptions = [metric(e, "pagestream_engine_preemptions_total") for e in engines]
        used = [metric(e, "pagestream_engine_kv_cache_usage_ratio") for e in engines]
    for (prompt, expected), (tokens, text, _) in zip(cases, answers, strict=True):
        assert tokens == expected, f"prompt of {len(prompt)} tokens"
        assert text == decode(expected, skip_special_tokens=True)
    assert sum(preemptions) > 0, "the pools were too large to preempt"
    assert used == [0, 0]
    num_cached = sum(cached for _, _, cached in answers)
    assert (num_cached > 0) == ("--no-enable-prefix-caching" not in options)
