"""Whole generations of the architectures other than Qwen3, against transformers."""

import random

import pytest
import safetensors.torch
import torch

from engine_service.errors import StartupError
from engine_service.llm import LLM
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.loading import build_model, check_weights, fill_randomly
from engine_service.models.registry import ARCHITECTURES
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.tiny_models import (
    GEMMA3_ROPE,
    LLAMA3_ROPE,
    YARN_ROPE,
    Shape,
    make_model,
    random_tokens,
    tensors_of,
)

NUM_PROMPTS, NUM_TOKENS = 12, 24
# Where transformers' two best logits come closer, rounding decides, and either token is right.
MIN_GAP = 1e-3
# Prompts are computed in chunks, decode beside others and share blocks.
OPTIONS = {"block_size": 16, "num_blocks": 60, "max_num_seqs": 8, "max_num_batched_tokens": 24}


SHAPES = tuple(
    Shape(
        family=family,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        is_tied=False,
        hidden_size=256,
        num_layers=3,
        rope=rope,
        fields=fields,
    )
    for family, rope, fields in (
        ("Gemma3", GEMMA3_ROPE, {"sliding_window": 33, "sliding_window_pattern": 2}),
        ("Llama", LLAMA3_ROPE, {}),
        ("Mistral", {}, {"sliding_window": 33}),
        ("Qwen2", YARN_ROPE, {}),
    )
)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def tiny(request, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("others") / "model", request.param, seed=3)


@pytest.fixture(scope="module")
def cases(tiny):
    """Returns prompts, some of which begin alike, and what transformers makes of them."""
    generator = random.Random(4)
    shared = random_tokens(generator, 40, tiny.vocab_size)

    def draw():
        begin = shared if generator.random() < 0.4 else []
        return begin + random_tokens(generator, generator.randint(1, 50), tiny.vocab_size)

    return tiny.clear_cases(iter(draw, None), NUM_PROMPTS, NUM_TOKENS, MIN_GAP)


def generate(folder, prompts, device="cpu", **options):
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
    with LLM(str(folder), device=device, dtype="float32", **(OPTIONS | options)) as llm:
        assert llm.info.architecture in ARCHITECTURES
        return [each.token_ids for each in llm.generate(prompts, params, use_tqdm=False)]


def parsed(folder):
    checkpoint = resolve_checkpoint(str(folder))
    return parse_config(checkpoint.read_config()), checkpoint


def test_greedy_tokens_equal_transformers(tiny, cases):
    prompts, tokens = cases
    assert len({tuple(each) for each in tokens}) > NUM_PROMPTS / 2

    assert generate(tiny.folder, prompts) == tokens


@pytest.mark.gpu
@pytest.mark.parametrize("enforce_eager", [True, False])
def test_greedy_tokens_on_cuda_equal_transformers(tiny, cases, enforce_eager):
    prompts, tokens = cases

    assert generate(tiny.folder, prompts, "cuda", enforce_eager=enforce_eager) == tokens


def test_without_its_line_in_the_registry_it_is_refused(tiny, monkeypatch):
    name = type(tiny.reference).__name__
    monkeypatch.delitem(ARCHITECTURES, name)
    with pytest.raises(StartupError, match=rf"architectures is .*{name}.*supported: .*Qwen3"):
        parsed(tiny.folder)


def test_every_stored_tensor_has_its_place(tiny):
    config, checkpoint = parsed(tiny.folder)
    check_weights(config, checkpoint)

    tensors = tensors_of(build_model(config, 64, torch.float32, torch.device("cpu")))

    expected = tiny.reference.state_dict()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@pytest.fixture
def qwen2(tmp_path):
    return make_model(tmp_path / "qwen2", SHAPES[3], seed=3)


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def test_every_bias_reaches_the_tokens(qwen2):
    prompt = random_tokens(random.Random(9), 30, qwen2.vocab_size)
    expected = generate(qwen2.folder, [prompt])
    for projection in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.1.self_attn.{projection}.bias"
        stored = safetensors.torch.load_file(qwen2.folder / "model.safetensors")[name]
        change_tensors(qwen2.folder, lambda tensors, name=name: tensors[name].mul_(-8))

        assert generate(qwen2.folder, [prompt]) != expected, projection

        change_tensors(
            qwen2.folder, lambda tensors, name=name, stored=stored: tensors.update({name: stored})
        )


def test_missing_bias_is_named_before_anything_is_allocated(qwen2):
    name = "model.layers.2.self_attn.k_proj.bias"
    change_tensors(qwen2.folder, lambda tensors: tensors.pop(name))

    with pytest.raises(
        StartupError, match=r"layers\.2\.self_attn\.k_proj\.bias of shape \[128\] is missing"
    ):
        check_weights(*parsed(qwen2.folder))


def test_biases_of_a_random_model_are_zero(qwen2):
    config, _ = parsed(qwen2.folder)
    model = build_model(config, 64, torch.float32, torch.device("cpu"))

    fill_randomly(model, 5, 0.1)

    tensors = tensors_of(model)
    assert not tensors["model.layers.0.self_attn.q_proj.bias"].any()
    assert (tensors["model.norm.weight"] == 1).all()
    assert tensors["model.layers.0.self_attn.q_proj.weight"].any()
