"""Logits against transformers, step by step, through the paged cache."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from engine_service.layers import attention
from engine_service.layers.ranks import ALONE
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.decoder import Decoder
from engine_service.models.loading import build_model, load_weights
from engine_service.worker.input_batch import InputBatch
from engine_service.worker.kv_cache import allocate_kv_cache
from engine_service.worker.model_runner import ModelRunner
from engine_service.worker.slot_sampling import NOTHING
from kernels.partial_attention import partial_attention
from tests.engine_service.plans import NewSequence, Row, make_plan
from tests.engine_service.tiny_models import (
    CUDA_SHAPES,
    GEMMA3_ROPE,
    LLAMA3_ROPE,
    OTHER_SHAPES,
    SHAPES,
    YARN_ROPE,
    Shape,
    make_model,
    random_tokens,
)
from tests.engine_service.worker.inputs import prepare
from tests.kernels.targets import needs_hopper

TOLERANCE = 1e-4
BLOCK_SIZE = 16
NUM_BLOCKS = 12


class Steps:
    """Runs plans on a model whose cache is NaN wherever nothing was written."""

    def __init__(self, folder, device="cpu", dtype=torch.float32, ranks=ALONE):
        device = torch.device(device)
        checkpoint = resolve_checkpoint(str(folder))
        config = parse_config(checkpoint.read_config())
        model = build_model(config, 512, dtype, device, ranks)
        load_weights(
            model,
            checkpoint,
            rank=ranks.rank,
            num_ranks=ranks.size,
            sum_over_ranks=ranks.all_reduce,
        )
        config = replace(config, num_kv_heads=config.num_kv_heads_of(ranks.size))
        cache = allocate_kv_cache(
            config, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, dtype=dtype, device=device
        )
        cache.blocks.fill_(torch.nan)
        self.batch = InputBatch(
            max_num_seqs=4,
            max_model_len=512,
            block_size=BLOCK_SIZE,
            vocab_size=config.vocab_size,
            device=device,
        )
        self.runner = ModelRunner(model, cache, self.batch, ranks)

    @torch.inference_mode()
    def logits(self, rows, new=None):
        """Returns [num_rows, vocab_size] float32 on the host."""
        inputs = prepare(self.batch, make_plan(rows, new))
        return self.runner.compute_logits(inputs).float().cpu()

    @torch.inference_mode()
    def logits_of_all(self, rows):
        """The same for rows of one token each, of which none is chosen, as in a graph."""
        inputs = prepare(self.batch, make_plan(rows))
        inputs = replace(inputs, sampling=replace(inputs.sampling, token_indices=None))
        return self.runner.compute_logits(inputs).float().cpu()


def check(logits, expected):
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)


def check_prefill(tiny, steps, prompt):
    new = {0: NewSequence(prompt, [7, 2, 9])}

    check(steps.logits([Row(0, 0, len(prompt))], new)[0], tiny.logits(prompt)[-1])


def check_chunked_prefill(tiny, steps, prompt):
    expected = tiny.logits(prompt)
    new = {1: NewSequence(prompt, [4, 11, 6])}
    for begin in range(0, len(prompt), 7):
        end = min(begin + 7, len(prompt))
        logits = steps.logits([Row(1, begin, end - begin)], new if begin == 0 else None)

        check(logits[0], expected[end - 1])


def check_chunk_that_yields_no_token(tiny, steps, prompt):
    """Of its last layer keys and values are all that is computed, but of all its tokens."""
    plan = make_plan([Row(1, 0, 9, is_sampled=False)], {1: NewSequence(prompt, [4, 11, 6])})
    with torch.inference_mode():
        assert steps.runner.run(prepare(steps.batch, plan), NOTHING) is None

    logits = steps.logits([Row(1, 9, len(prompt) - 9)])

    check(logits[0], tiny.logits(prompt)[-1])


def check_prefix_hit(tiny, steps, prompt):
    steps.logits([Row(0, 0, len(prompt))], {0: NewSequence(prompt, [7, 2, 9])})
    other = prompt[: 2 * BLOCK_SIZE] + prompt[:5]
    new = {2: NewSequence(other, [7, 2, 5])}

    logits = steps.logits([Row(2, 2 * BLOCK_SIZE, 5)], new)

    check(logits[0], tiny.logits(other)[-1])


def check_decode(tiny, steps, prompt):
    expected = tiny.logits(prompt)
    steps.logits([Row(3, 0, 13)], {3: NewSequence(prompt, [1, 12, 3])})
    for position in range(13, len(prompt)):
        logits = steps.logits([Row(3, position, 1)])

        check(logits[0], expected[position])


def check_mixed_batch(tiny, steps, prompt):
    other = prompt[::-1]
    steps.logits([Row(0, 0, 16)], {0: NewSequence(prompt, [7, 2, 9])})
    steps.logits([Row(3, 0, 10)], {3: NewSequence(other, [1, 12, 3])})
    new = {1: NewSequence(prompt[5:25], [4, 10])}

    logits = steps.logits([Row(3, 10, 9), Row(0, 16, 1), Row(1, 0, 20)], new)

    check(logits[0], tiny.logits(other)[18])
    check(logits[1], tiny.logits(prompt)[16])
    check(logits[2], tiny.logits(prompt[5:25])[-1])


CHECKS = [
    check_prefill,
    check_chunked_prefill,
    check_chunk_that_yields_no_token,
    check_prefix_hit,
    check_decode,
    check_mixed_batch,
]


@pytest.fixture(scope="module", params=SHAPES + OTHER_SHAPES, ids=str)
def tiny(request, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("logits") / "model", request.param)


@pytest.fixture
def prompt(tiny):
    return random_tokens(random.Random(1), 37, tiny.vocab_size)


@pytest.mark.parametrize("check_logits", CHECKS)
def test_logits_equal_transformers(tiny, prompt, check_logits):
    check_logits(tiny, Steps(tiny.folder), prompt)


def count_parts(monkeypatch):
    """Returns a list that gets longer each time that attention is left in parts."""
    calls = []

    def leave(*arguments):
        calls.append(None)
        return partial_attention(*arguments)

    monkeypatch.setattr(attention, "partial_attention", leave)
    return calls


def may_leave_parts(qkv, *_):
    return len(qkv) == 1


def test_logits_of_a_token_whose_attention_is_left_in_parts_equal_transformers(
    tiny, prompt, monkeypatch
):
    monkeypatch.setattr(attention, "can_leave_parts", may_leave_parts)
    calls = count_parts(monkeypatch)
    expected = tiny.logits(prompt)[-1]
    steps, last = Steps(tiny.folder), len(prompt) - 1
    steps.logits([Row(3, 0, last)], {3: NewSequence(prompt, [1, 12, 3])})

    check(steps.logits_of_all([Row(3, last, 1)])[0], expected)
    num_of_all = len(calls)
    # The last layer goes on with chosen rows.
    check(steps.logits([Row(3, last, 1)])[0], expected)

    model = steps.runner._model
    has_parts = [
        isinstance(model, Decoder) and not layer.self_attn.attention.window
        for layer in model.layers
    ]
    assert num_of_all == sum(has_parts)
    assert len(calls) - num_of_all == sum(has_parts[:-1])


def test_step_without_sampled_rows_yields_no_tokens(tiny_model):
    steps = Steps(tiny_model.folder)
    plan = make_plan([Row(0, 0, 4, is_sampled=False)], {0: NewSequence(range(9), [1])})

    assert steps.runner.run(prepare(steps.batch, plan), NOTHING) is None


class Calls(TorchDispatchMode):
    """Notes what torch is asked to compute, a tensor by what a kernel is chosen by."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        described = tree_map_only(
            torch.Tensor,
            lambda tensor: (tuple(tensor.shape), tensor.stride(), tensor.dtype),
            (args, kwargs or {}),
        )
        self.found[function, str(described)] += 1
        return function(*args, **(kwargs or {}))


@torch.inference_mode()
def calls_of(runner, batch, rows, new):
    inputs = prepare(batch, make_plan(rows, new))
    with Calls() as calls:
        runner.run(inputs, NOTHING)
    return calls.found


WITH_WINDOWS = Shape(
    family="Gemma3",
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    is_tied=True,
    num_layers=7,
    rope=GEMMA3_ROPE,
    fields={"sliding_window": 24, "sliding_window_pattern": 3},
)


@pytest.mark.parametrize(
    ("shape", "distinct"), [(WITH_WINDOWS, (0, 2, 6)), (replace(SHAPES[1], num_layers=5), (0, 4))]
)
def test_a_shortened_step_computes_what_each_kind_of_layer_does(tmp_path, shape, distinct):
    """Or else a kernel would be compiled while a step is captured as a graph."""
    steps = Steps(make_model(tmp_path / "model", shape).folder)
    model = steps.runner._model
    assert tuple(model.distinct_layers) == distinct
    new = {0: NewSequence(range(60), [7, 2, 9, 4]), 1: NewSequence(range(30), [1, 3])}
    for rows in ([Row(0, 0, 40)], [Row(0, 40, 1), Row(1, 0, 29)], [Row(0, 41, 1), Row(1, 29, 1)]):
        first_seen = new if rows[0].num_computed_tokens == 0 else None
        whole = calls_of(steps.runner, steps.batch, rows, first_seen)

        shortened = calls_of(steps.runner.shortened(), steps.batch, rows, None)

        assert set(shortened) == set(whole)
        # Without the embedding, the head and the sampler, layers take equally many each.
        assert shortened.total() < whole.total() * (len(distinct) + 1) / shape.num_layers


@pytest.mark.gpu
@pytest.mark.parametrize("check_logits", CHECKS)
@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
def test_float32_logits_on_cuda_equal_transformers(tmp_path, shape, check_logits):
    tiny = make_model(tmp_path / "model", shape)
    prompt = random_tokens(random.Random(1), 37, tiny.vocab_size)

    check_logits(tiny, Steps(tiny.folder, "cuda"), prompt)


OTHER_FAMILIES = [
    {
        "family": "Gemma3",
        "rope": GEMMA3_ROPE,
        "fields": {"sliding_window": 100, "sliding_window_pattern": 2},
    },
    {"family": "Llama", "rope": LLAMA3_ROPE},
    {"family": "Qwen2", "rope": YARN_ROPE},
    {"family": "Mistral", "fields": {"sliding_window": 100}},
]


def half_errors(folder, seed, dtype, *, is_last_alone=False, **changes):
    """Returns the root mean square error against float32 of our 16-bit logits and of theirs.

    The last token of each prompt may be a step of its own.
    """
    shape = Shape(
        num_heads=8,
        num_kv_heads=2,
        head_dim=128,
        is_tied=False,
        hidden_size=512,
        num_layers=4,
        vocab_size=2000,
        **changes,
    )
    tiny = make_model(folder, shape, seed=seed, dtype=dtype)
    generator = random.Random(seed)
    prompts = [random_tokens(generator, 150, tiny.vocab_size) for _ in range(16)]
    exact = torch.stack([tiny.logits(prompt)[-1] for prompt in prompts])
    steps = Steps(tiny.folder, "cuda", dtype)
    all_ours = []
    for prompt in prompts:
        new = {0: NewSequence(prompt, range(1, 11))}
        num_first = len(prompt) - is_last_alone
        ours = steps.logits([Row(0, 0, num_first)], new)
        if is_last_alone:
            ours = steps.logits_of_all([Row(0, num_first, 1)])
        all_ours.append(ours)
    ours = torch.cat(all_ours)
    reference = type(tiny.reference).from_pretrained(tiny.folder, dtype=dtype)
    reference.eval().to("cuda")
    # Moving keeps them float32: only the weights have 16 bits.
    frequencies = [buffer for name, buffer in reference.named_buffers() if "inv_freq" in name]
    assert {buffer.dtype for buffer in frequencies} == {torch.float32}
    with torch.inference_mode():
        theirs = reference(torch.tensor(prompts, device="cuda")).logits[:, -1].float().cpu()
    return tuple((logits - exact).square().mean().sqrt().item() for logits in (ours, theirs))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_bfloat16_logits_are_as_exact_as_those_of_transformers(tmp_path, seed):
    our_error, their_error = half_errors(tmp_path / "model", seed, torch.bfloat16)

    assert 0 < our_error <= 2 * their_error


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("changes", OTHER_FAMILIES, ids=lambda changes: changes["family"])
def test_logits_of_other_architectures_are_as_exact(tmp_path, changes, dtype):
    our_error, their_error = half_errors(tmp_path / "model", 1, dtype, **changes)

    assert 0 < our_error <= 2 * their_error


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Qwen2"])
def test_logits_of_a_token_whose_attention_is_left_in_parts_are_as_exact(
    tmp_path, monkeypatch, family
):
    calls = count_parts(monkeypatch)
    rope = {"Llama": LLAMA3_ROPE, "Qwen2": YARN_ROPE, "Qwen3": {}}[family]

    our_error, their_error = half_errors(
        tmp_path / "model", 2, torch.bfloat16, is_last_alone=True, family=family, rope=rope
    )

    assert 0 < our_error <= 2 * their_error
    assert len(calls) == 16 * 4


def test_more_bits_are_more_exact_on_the_cpu(tiny_model):
    prompt = random_tokens(random.Random(1), 37, tiny_model.vocab_size)
    new = {0: NewSequence(prompt, [7, 2, 9])}
    errors = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = Steps(tiny_model.folder, dtype=dtype).logits([Row(0, 0, len(prompt))], new)[0]
        errors.append((logits - tiny_model.logits(prompt)[-1]).abs().max().item())

    assert 2 * errors[0] < errors[1] < errors[2] / 2
    assert errors[2] < 1
