"""A model that is too large is refused before it is read, with what would fit."""

import pytest
import torch

from engine_service.errors import StartupError
from engine_service.models.config import parse_config
from engine_service.worker.model_fit import DeviceMemory, check_fit, weights_bytes

GIB = 2**30
LLAMA_70B = parse_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "max_position_embeddings": 131072,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    }
)


def memory(total, free=None, utilization=0.9):
    free = total if free is None else free
    return DeviceMemory(
        name="cuda:0", free=int(free * GIB), total=int(total * GIB), utilization=utilization
    )


def refusal(num_ranks, of):
    with pytest.raises(StartupError) as error:
        check_fit(LLAMA_70B, torch.bfloat16, num_ranks, of)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_size_is_that_of_all_parameters():
    # As Meta counts them.
    assert weights_bytes(LLAMA_70B, torch.bfloat16) == 2 * 70_553_706_496
    assert weights_bytes(LLAMA_70B, torch.float32) == 4 * 70_553_706_496


@pytest.mark.parametrize(("total", "num_ranks"), [(180, 1), (80, 2), (40, 4), (24, 8)])
def test_model_with_room_to_spare_fits(total, num_ranks):
    check_fit(LLAMA_70B, torch.bfloat16, num_ranks, memory(total))


def test_refusal_has_sizes_and_the_number_of_gpus():
    assert refusal(1, memory(79.2)) == (
        "the model's weights take 131.4 GiB in bfloat16, too much for cuda:0: of 79.2 GiB, 79.2 "
        "GiB are free and gpu_memory_utilization 0.9 allows 71.3 GiB; it fits on 4 such GPUs, "
        "with tensor_parallel_size 4"
    )


def test_refusal_names_the_share_of_each_rank():
    message = refusal(2, memory(47.5))
    assert message.startswith("the model's weights take 65.7 GiB in bfloat16 over 2 ranks, too")
    assert message.endswith("tensor_parallel_size 4")


def test_memory_that_others_hold_is_told_apart():
    assert refusal(1, memory(180, free=100)).endswith("; free memory of the GPU")


def test_model_that_no_number_of_ranks_makes_fit():
    assert refusal(1, memory(1)).endswith("; take a smaller model or larger GPUs")
