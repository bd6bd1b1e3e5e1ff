import json
import re
import shutil

import pytest

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.types import (
    Request,
    int32_array,
)
from engine_service.errors import StartupError
from engine_service.worker.executor import start_executor
from engine_service.worker.warm_up import warm_up_plans
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.plans import NewSequence, Row, make_plan

SCHEDULER = SchedulerOptions(max_num_seqs=4, max_num_batched_tokens=64)


def start(folder, cache=None, **options):
    model = ModelOptions(model=str(folder), device="cpu", **options)
    return start_executor(model, cache or CacheOptions(block_size=16, num_blocks=12), SCHEDULER)


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_model.folder, tmp_path / "copy")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_info_tells_what_start_up_learnt(tiny_model):
    _, info = start(tiny_model.folder)

    assert info.model_name == tiny_model.folder.name
    assert info.architecture == "Qwen3ForCausalLM"
    assert re.fullmatch("[0-9a-f]{32}", info.model_fingerprint)
    assert (info.vocab_size, info.max_model_len) == (300, 512)
    assert (info.block_size, info.num_blocks, info.max_num_seqs) == (16, 12, 4)
    assert info.max_num_batched_tokens == 64
    assert (info.dtype, info.device, info.tensor_parallel_size) == ("float32", "cpu", 1)


def test_options_override_what_the_checkpoint_says(tiny_model):
    _, info = start(
        tiny_model.folder, served_model_name="mine", max_model_len=100, dtype="bfloat16"
    )

    assert (info.model_name, info.max_model_len, info.dtype) == ("mine", 100, "bfloat16")


def test_pool_on_the_cpu_is_sized_in_bytes(tiny_model):
    block_bytes = 3 * 2 * 2 * 16 * 16 * 4

    _, info = start(
        tiny_model.folder, CacheOptions(block_size=16, cpu_cache_bytes=10 * block_bytes + 1)
    )

    assert info.num_blocks == 10


def test_tokens_come_in_the_order_of_the_plan(tiny_model):
    executor, _ = start(tiny_model.folder)
    prompts = [[5, 6, 7], [8], [9, 10]]
    new = {slot: NewSequence(prompt, [slot + 1]) for slot, prompt in enumerate(prompts)}
    rows = [Row(0, 0, 3), Row(1, 0, 1), Row(2, 0, 1, is_sampled=False)]

    result = executor.collect(executor.launch(make_plan(rows, new)))

    expected = [tiny_model.logits(prompt)[-1].argmax().item() for prompt in prompts[:2]]
    assert result.token_counts.tolist() == [1, 1, 0]
    assert result.token_ids.tolist() == expected
    assert result.prepare_seconds > 0
    assert result.device_seconds == result.launch_seconds > 0


def test_step_may_be_launched_before_the_last_is_collected(tiny_model):
    executor, _ = start(tiny_model.folder)
    prompt = [5, 6, 7]

    first = executor.launch(make_plan([Row(0, 0, 3)], {0: NewSequence(prompt, [3])}))
    second = executor.launch(make_plan([Row(0, 3, 1)]))

    expected, _ = tiny_model.greedy(prompt, 2)
    collected = [executor.collect(step).token_ids.tolist() for step in (first, second)]
    assert collected == [expected[:1], expected[1:]]


def test_resumed_request_goes_on_with_the_same_draws(tiny_model):
    executor, info = start(tiny_model.folder)
    core = EngineCore(info, SCHEDULER, executor)
    params = SamplingParams(temperature=0.6, max_tokens=12, seed=11)
    prompt = int32_array([3, 1, 4, 1, 5])

    def run(request_id, resumed):
        core.add(
            Request(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling_params=params,
                resume_token_ids=int32_array(resumed),
            )
        )
        tokens = []
        while core.has_work:
            tokens += core.step().token_ids
        return tokens

    whole = run(1, [])

    assert len(set(whole)) > 3
    assert run(2, whole[:7]) == whole[7:]


def test_closing_twice_is_closing_once(tiny_model):
    executor, _ = start(tiny_model.folder)

    executor.close()
    executor.close()


def test_random_weights_need_no_weights_files(folder):
    (folder / "model.safetensors").unlink()

    first, info = start(folder, load_format="dummy", seed=3)
    again, same = start(folder, load_format="dummy", seed=3)

    plan = make_plan([Row(0, 0, 3)], {0: NewSequence([5, 6, 7], [3])})
    tokens = [executor.collect(executor.launch(plan)).token_ids for executor in (first, again)]
    assert tokens[0] == tokens[1]
    assert info == same


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["LlamaForCausalLM"]}, r"_norm\.weight is not part of the model"),
        ({"num_hidden_layers": 4, "layer_types": None}, r"model\.layers\.3\."),
        (
            {"num_hidden_layers": 2, "layer_types": None},
            r"model\.layers\.2\..* is not part of the model",
        ),
        ({"vocab_size": 301}, r"weight has shape \[300, 64\].*\[301, 64\]"),
    ],
)
def test_model_that_is_not_what_its_config_says_is_refused_in_one_line(folder, changes, expected):
    change_config(folder, **changes)

    with pytest.raises(StartupError, match=expected) as refusal:
        start(folder)

    assert "\n" not in str(refusal.value)


def test_length_beyond_the_model_is_refused(tiny_model):
    with pytest.raises(StartupError, match=r"max_model_len is 513, .* max_position_embeddings 512"):
        start(tiny_model.folder, max_model_len=513)


def test_cache_without_room_for_a_block_is_refused(tiny_model):
    with pytest.raises(StartupError, match="cpu_cache_bytes is 5"):
        start(tiny_model.folder, CacheOptions(cpu_cache_bytes=5))


@pytest.mark.parametrize("is_largest", [False, True])
@pytest.mark.parametrize("max_num_seqs", [1, 3, 100])
@pytest.mark.parametrize("max_num_batched_tokens", [1, 2, 64])
@pytest.mark.parametrize("max_model_len", [2, 3, 40])
def test_warm_up_keeps_to_the_limits(
    is_largest, max_num_seqs, max_num_batched_tokens, max_model_len
):
    options = SchedulerOptions(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
    )

    plans = warm_up_plans(options, max_model_len, is_largest=is_largest)

    for plan in plans:
        assert 1 <= len(plan.slots) <= max_num_seqs
        assert min(plan.num_scheduled_tokens) >= 1
        assert sum(plan.num_scheduled_tokens) <= max_num_batched_tokens
        for computed, scheduled in zip(
            plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True
        ):
            assert computed >= 0
            assert computed + scheduled < max_model_len
    if is_largest:
        reached = max(sum(plan.num_scheduled_tokens) for plan in plans)
        assert reached >= min(max_num_batched_tokens, max_model_len - 1)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", "cpu does not have enough memory for the model"),
        pytest.param("cuda", "too much for cuda:0: of .* are free", marks=pytest.mark.gpu),
    ],
)
def test_model_larger_than_memory_is_refused_in_one_line(folder, device, expected):
    change_config(folder, vocab_size=2**22, hidden_size=2**18)

    with pytest.raises(StartupError, match=expected) as refusal:
        start_executor(
            ModelOptions(model=str(folder), device=device, load_format="dummy"),
            CacheOptions(),
            SCHEDULER,
        )

    assert "\n" not in str(refusal.value)
