"""That the steps of the warm-up compile whatever a later step may run."""

import dataclasses

import pytest
import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.types import int32_array
from engine_service.worker.executor import start_executor
from engine_service.worker.input_batch import Bounds
from engine_service.worker.rows import Rows
from engine_service.worker.warm_up import warm_up_plans
from kernels.attention_parts import (
    count_splits,
    num_further_splits,
)
from kernels.decode_splits import MAX_SEQS, _split_sequences_kernel
from kernels.linear_hopper import _linear_hopper_kernel
from kernels.paged_attention_decode import _split_kernel
from kernels.product_division import padded
from kernels.shared_prefix import _combine_kernel, _shared_kernel
from tests.engine_service.plans import Row, make_plan
from tests.engine_service.tiny_models import CUDA_SHAPES, make_model

BLOCK_SIZES = [16, 48, 256]


def variant(num_seqs, max_seq_len, num_kv_heads, num_multiprocessors, shares):
    """Returns what the attention of decodes is compiled for: is it shared, planned, divided?"""
    sizes = num_kv_heads, max_seq_len, num_multiprocessors
    num_splits = num_further = 0
    if not shares and 1 < num_seqs <= MAX_SEQS:
        num_further = num_further_splits(num_seqs, *sizes)
    if not num_further:
        num_splits = count_splits(num_seqs * num_kv_heads, max_seq_len, num_multiprocessors)
    return shares, num_further > 0, num_splits > 1


def warmed_up(options, max_model_len, block_size, num_kv_heads, num_multiprocessors):
    plans = warm_up_plans(options, max_model_len, is_largest=True, shared_block_size=block_size)
    found = set()
    for plan in plans:
        max_seq_len = Bounds.of(Rows.of(plan)).max_decode_seq_len
        if max_seq_len:
            shares = plan.shared_prefixes is not None
            sizes = len(plan.slots), max_seq_len, num_kv_heads, num_multiprocessors
            found.add(variant(*sizes, shares))
    return found


@pytest.mark.parametrize("num_multiprocessors", [78, 132])
@pytest.mark.parametrize("num_kv_heads", [1, 3, 8, 20])
@pytest.mark.parametrize("max_num_seqs", [2, 33, 200, 600])
@pytest.mark.parametrize("max_model_len", [300, 40_960])
def test_decodes_of_any_number_and_length_are_warmed_up(
    num_multiprocessors, num_kv_heads, max_num_seqs, max_model_len
):
    options = SchedulerOptions(max_num_seqs=max_num_seqs)
    numbers = [*range(1, 40, 3), *range(40, max_num_seqs, 31), max_num_seqs]
    lengths = [*range(1, 300, 20), *range(300, max_model_len, 1280), max_model_len - 1]
    for block_size in BLOCK_SIZES:
        expected = {
            variant(number, length, num_kv_heads, num_multiprocessors, shares)
            for number in numbers
            if number <= max_num_seqs
            for length in lengths
            for shares in (False, True)
            if not shares or (number > 1 and length > block_size)
        }
        sizes = num_kv_heads, num_multiprocessors
        assert expected <= warmed_up(options, max_model_len, block_size, *sizes)


@pytest.mark.parametrize("max_num_seqs", [1, 4, 5, 16, 20, 33, 40, 64, 65, 200])
def test_products_of_any_few_rows_are_warmed_up(max_num_seqs):
    options = SchedulerOptions(max_num_seqs=max_num_seqs)
    plans = warm_up_plans(options, 1000, is_largest=True, shared_block_size=16)
    # The rows that yield a token, of which the last layer computes no others.
    warmed_up = {padded(len(plan.slots)) for plan in plans}

    assert {padded(rows) for rows in range(1, min(max_num_seqs, 64) + 1)} <= warmed_up


@pytest.mark.parametrize("max_model_len", [16, 17, 18, 100])
@pytest.mark.parametrize("max_num_seqs", [1, 2, 100])
def test_shared_prefixes_of_the_warm_up_are_whole_blocks_of_sequences_that_hold_them(
    max_num_seqs, max_model_len
):
    options = SchedulerOptions(max_num_seqs=max_num_seqs)
    plans = warm_up_plans(options, max_model_len, is_largest=True, shared_block_size=16)
    sharing = [plan for plan in plans if plan.shared_prefixes]

    assert bool(sharing) == (max_num_seqs > 1 and max_model_len > 16)
    for plan in sharing:
        size, prefix_len, *slots = plan.shared_prefixes
        assert slots == plan.slots.tolist()
        assert size == len(slots) > 1
        assert prefix_len % 16 == 0
        assert 0 < prefix_len <= min(plan.num_computed_tokens) + 1


def test_without_a_block_size_nothing_is_shared():
    plans = warm_up_plans(SchedulerOptions(), 1000, is_largest=True, shared_block_size=None)

    assert not any(plan.shared_prefixes for plan in plans)


@pytest.mark.gpu
@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "graphs"])
def test_no_step_compiles_attention_of_decodes_or_products(tmp_path, enforce_eager):
    folder = make_model(tmp_path / "model", CUDA_SHAPES[1]).folder
    kernels = [_split_kernel, _shared_kernel, _combine_kernel, _split_sequences_kernel]
    if torch.cuda.get_device_capability()[0] == 9:
        kernels.append(_linear_hopper_kernel)
    for kernel in kernels:
        kernel.device_caches.clear()
    executor, _ = start_executor(
        ModelOptions(
            model=str(folder), device="cuda", dtype="bfloat16", enforce_eager=enforce_eager
        ),
        CacheOptions(block_size=16, num_blocks=64),
        SchedulerOptions(max_num_seqs=70, max_num_batched_tokens=100),
    )
    device = torch.cuda.current_device()
    before = [len(kernel.device_caches[device][0]) for kernel in kernels]
    assert all(before)

    for number in (2, 3, 16, 17, 33, 39, 65, 69):
        for length in (33, 100, 129, 300, 511):
            decodes = [Row(slot, length - 1, 1) for slot in range(number)]
            for rows in (decodes, [*decodes, Row(number, 0, 20)]):
                for shared in (None, int32_array([number, 32, *range(number)])):
                    plan = dataclasses.replace(make_plan(rows), shared_prefixes=shared)
                    executor.collect(executor.launch(plan))
    executor.close()

    assert [len(kernel.device_caches[device][0]) for kernel in kernels] == before
