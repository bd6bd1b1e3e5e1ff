import pytest
import torch

from engine_service.config import CacheOptions
from engine_service.errors import StartupError
from engine_service.models.model_config import ModelConfig
from engine_service.worker.kv_cache import (
    allocate_kv_cache,
    bytes_per_block,
    num_blocks_on_cpu,
    num_blocks_on_cuda,
)

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    hidden_size=64,
    architecture="Qwen3ForCausalLM",
    vocab_size=300,
    num_layers=3,
    num_kv_heads=2,
    head_dim=16,
    max_sequence_len=512,
    max_sequence_len_field="max_position_embeddings",
    initializer_range=0.02,
    windows=(0, 0, 0),
    dtype="float32",
)


def allocate(num_blocks, block_size=16, dtype=torch.float32, device=CPU):
    return allocate_kv_cache(
        CONFIG, num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=device
    )


def test_block_counts_keys_and_values_of_all_layers():
    assert bytes_per_block(CONFIG, 32, torch.bfloat16) == 32 * 3 * 2 * 2 * 16 * 2


def test_pool_holds_the_null_block_besides_and_a_block_is_one_piece():
    cache = allocate(5)

    assert cache.num_blocks == 5
    assert cache.block_size == 16
    assert cache.blocks.shape == (6, 3, 2, 2, 16, 16)
    assert cache.blocks.nbytes == 6 * bytes_per_block(CONFIG, 16, torch.float32)
    assert cache.blocks[3].is_contiguous()


def test_layers_are_views_of_their_own_part():
    cache = allocate(2)
    for index, layer in enumerate(cache.layers):
        assert layer.shape == (2, 3, 2, 16, 16)
        layer.fill_(index)

    for index in range(3):
        assert (cache.blocks[:, index] == index).all()


def test_null_block_is_zero():
    assert (allocate(1).blocks[0] == 0).all()


def test_asked_number_of_blocks_wins_over_bytes():
    assert num_blocks_on_cpu(CacheOptions(num_blocks=7, cpu_cache_bytes=1), 1000) == 7


def test_bytes_hold_whole_blocks():
    assert num_blocks_on_cpu(CacheOptions(cpu_cache_bytes=2999), 1000) == 2


def test_bytes_under_one_block_are_refused_with_both_numbers():
    with pytest.raises(StartupError, match=r"cpu_cache_bytes is 999.*takes 1000.*raise") as refusal:
        num_blocks_on_cpu(CacheOptions(cpu_cache_bytes=999), 1000)

    assert "\n" not in str(refusal.value)


def test_pool_larger_than_memory_is_refused():
    with pytest.raises(StartupError, match=r"KV cache of .* blocks needs .* lower num_blocks"):
        allocate(1 << 40)


@pytest.mark.gpu
def test_pool_on_cuda_keeps_to_its_share():
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    block_bytes = 1 << 20

    half = num_blocks_on_cuda(CacheOptions(gpu_memory_utilization=0.5), block_bytes, 0, device)
    quarter = num_blocks_on_cuda(CacheOptions(gpu_memory_utilization=0.25), block_bytes, 0, device)

    assert quarter * block_bytes < 0.25 * total
    assert abs((half - quarter) * block_bytes - 0.25 * total) <= 2 * block_bytes


@pytest.mark.gpu
def test_share_that_holds_no_block_is_refused():
    device = torch.device("cuda", 0)
    options = CacheOptions(gpu_memory_utilization=0.01)

    with pytest.raises(StartupError, match=r"gpu_memory_utilization 0\.01") as refusal:
        num_blocks_on_cuda(options, 1 << 34, 0, device)

    assert "\n" not in str(refusal.value)
