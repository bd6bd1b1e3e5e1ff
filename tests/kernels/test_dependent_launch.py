"""That kernels which start early do not read early what may not be ready."""

from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from kernels import dependent_launch as dependent_launch_module
from kernels import silu_and_mul as activation
from kernels.all_reduce import Way, _launch
from kernels.attention_parts import make_counters
from kernels.decode_splits import split_sequences
from kernels.dependent_launch import dependent_launch
from kernels.linear import gated_linear, linear, linear_norm_linear, norm_linear
from kernels.paged_attention_decode import paged_attention_decode
from kernels.partial_attention import (
    MAX_PARTS,
    PartialAttention,
    combine_parts,
    partial_attention,
)
from kernels.partial_attention_linear import multiply_parts_before_norm
from kernels.peer_memory import buffer_bytes, peer_memory
from kernels.qk_norm_rope_store import qk_norm_rope_store
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.sample import sample
from kernels.shared_prefix import SharedPrefixes
from kernels.silu_and_mul import silu_and_mul
from kernels.slots import append_tokens
from kernels.tile_shares import make_counters as make_product_counters
from tests.kernels.overlap import EPS, GPU, on_gpu_that_overlaps, weight
from tests.kernels.sampling import COLUMNS, records_of

NUM_ROWS, HIDDEN, HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 3, 256, 64, 16, 12
NUM_HOPPER_ROWS = 9
DELAY = 500_000  # nanoseconds
BLOCK = 1024


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Replaces the fixture that fills outputs: nothing may be launched between the two kernels."""


@triton.jit
def _late_copy_kernel(source, target, size, DELAY: tl.constexpr, BLOCK: tl.constexpr):
    tl.extra.cuda.gdc_launch_dependents()
    now = tl.extra.cuda.globaltimer()
    end = now + DELAY
    while now < end:
        now = tl.extra.cuda.globaltimer()
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = offsets < size
    tl.store(target + offsets, tl.load(source + offsets, mask=is_inside), mask=is_inside)


def write_late(source, target):
    """Lets the next kernel start, and only then, and later, writes the target."""
    size = source.numel()
    grid = (triton.cdiv(size, BLOCK),)
    _late_copy_kernel[grid](source, target, size, DELAY=DELAY, BLOCK=BLOCK, num_warps=1)


def integers(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype).cuda()


def linear_case(num_rows=NUM_ROWS):
    return linear, {"x": GPU.randn(num_rows, HIDDEN), "weight": weight(40, HIDDEN)}


def norm_linear_case(num_rows=NUM_ROWS):
    return norm_linear, {
        "x": GPU.randn(num_rows, HIDDEN),
        "residual": GPU.randn(num_rows, HIDDEN),
        "norm_weight": GPU.randn(HIDDEN),
        "eps": EPS,
        "weight": weight(40, HIDDEN),
    }


def gated_linear_case():
    return gated_linear, {"x": GPU.randn(NUM_ROWS, HIDDEN), "weight": weight(40, HIDDEN)}


def hopper_linear_case():
    return linear_case(NUM_HOPPER_ROWS)


def hopper_norm_linear_case():
    return norm_linear_case(NUM_HOPPER_ROWS)


def chained_linear_case():
    return linear_norm_linear, {
        "x": GPU.randn(NUM_HOPPER_ROWS, 8 * HIDDEN),
        "weight": weight(HIDDEN, 8 * HIDDEN),
        "residual": GPU.randn(NUM_HOPPER_ROWS, HIDDEN),
        "norm_weight": GPU.randn(HIDDEN),
        "eps": EPS,
        "next_weight": weight(40, HIDDEN),
        # Without them, a kernel that clears some would come between.
        "counters": make_product_counters("cuda"),
        "next_counters": make_product_counters("cuda"),
    }


def rms_norm_case():
    return rms_norm, {"x": GPU.randn(NUM_ROWS, HIDDEN), "weight": GPU.randn(HIDDEN), "eps": EPS}


def add_rms_norm_case():
    return add_rms_norm, {
        "x": GPU.randn(NUM_ROWS, HIDDEN),
        "residual": GPU.randn(NUM_ROWS, HIDDEN),
        "weight": GPU.randn(HIDDEN),
        "eps": EPS,
    }


def all_reduce_alone(x, residual, weight, memory, way):
    out, total = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, weight, EPS, out, total, memory, way=way)
    return out, total


def all_reduce_case(way):
    """The only rank: it waits for no other."""
    num_bytes = buffer_bytes(1, HIDDEN, GPU.dtype, NUM_ROWS)
    buffer = torch.zeros(num_bytes, dtype=torch.uint8).cuda()
    memory = peer_memory(0, [buffer], HIDDEN, GPU.dtype, NUM_ROWS, 2)
    return partial(all_reduce_alone, memory=memory, way=way), {
        "x": GPU.randn(NUM_ROWS, HIDDEN),
        "residual": GPU.randn(NUM_ROWS, HIDDEN),
        "weight": GPU.randn(HIDDEN),
    }


def tagged_words_case():
    return all_reduce_case(Way.TAGGED_WORDS)


def flagged_rows_case():
    return all_reduce_case(Way.FLAGGED_ROWS)


def two_shots_case():
    return all_reduce_case(Way.TWO_SHOTS)


def silu_and_mul_case():
    return silu_and_mul, {"x": GPU.randn(NUM_ROWS, 2 * HIDDEN)}


def kv_cache():
    return GPU.randn(2, NUM_BLOCKS, 2, BLOCK_SIZE, HEAD_DIM)


def store_case():
    return qk_norm_rope_store, {
        "qkv": GPU.randn(NUM_ROWS, (4 + 2 * 2) * HEAD_DIM),
        "q_weight": GPU.randn(HEAD_DIM),
        "k_weight": GPU.randn(HEAD_DIM),
        "eps": EPS,
        "cos_sin": torch.randn(50, HEAD_DIM).cuda(),
        "positions": integers(3, 49, 17),
        "cache_locs": integers(5, 40, 77),
        "kv_cache": kv_cache(),
        "num_heads": 4,
    }


def attention_case(max_seq_len):
    return paged_attention_decode, {
        "queries": GPU.randn(NUM_ROWS, 4, HEAD_DIM),
        "kv_cache": kv_cache(),
        "block_table": torch.arange(1, 1 + NUM_ROWS * 3, dtype=torch.int32).view(-1, 3).cuda(),
        "seq_lens": integers(48, 30, 7, dtype=torch.int32),
        "max_seq_len": max_seq_len,
        "scale": HEAD_DIM**-0.5,
        "counters": make_counters("cuda"),
    }


def split_attention_case():
    return attention_case(4096)


def whole_attention_case():
    return attention_case(48)


def planned_attention_case():
    function, arguments = attention_case(48)
    arguments["splits"] = split_sequences(arguments["seq_lens"], 4096, 2)
    torch.cuda.synchronize()
    return function, arguments


def plan(**arguments):
    """Plans; of programs without work there is only the split."""
    splits = split_sequences(**arguments)
    return splits.where(splits[:, 1:2] >= 0, -1)


def plan_case():
    return plan, {
        "seq_lens": integers(4800, 30, 7, dtype=torch.int32),
        "max_seq_len": 4800,
        "num_kv_heads": 200,
    }


def shared_attention_case():
    function, arguments = attention_case(48)
    arguments["block_table"][1, :1] = arguments["block_table"][0, :1]
    tiles, members, prefix_lens = (
        integers(0, 2, 16, dtype=torch.int32)[None],
        integers(0, 1, dtype=torch.int32),
        integers(16, 16, 0, dtype=torch.int32),
    )
    names = ("tiles", "members", "prefix_lens")
    tensors = dict(zip(names, (tiles, members, prefix_lens), strict=True))

    def attend(**arguments):
        shared = SharedPrefixes(**{name: arguments.pop(name) for name in names})
        return function(**arguments, shared=shared)

    return attend, arguments | tensors


def sample_case():
    temperatures = torch.tensor([1.0, 0.7, 1.5]).cuda()
    records, slots = records_of(temperatures, integers(11, 12, 13))
    return partial(sample, columns=COLUMNS), {
        # Far enough apart to draw other tokens than equal ones do.
        "logits": GPU.randn(NUM_ROWS, 3000) * 4,
        "records": records,
        "slots": slots,
        "positions": integers(21, 22, 23),
    }


def append_case():
    return append_tokens, {
        "tokens": torch.zeros(NUM_ROWS, 50, dtype=torch.int32).cuda(),
        "slots": integers(2, 1, 0),
        "positions": integers(3, 49, 17),
        "token_ids": integers(70, 80, 90),
    }


def combined_partial_attention(**arguments):
    return combine_parts(partial_attention(**arguments))


def parts_case():
    return combined_partial_attention, {
        "qkv": GPU.randn(1, (4 + 2 * 2) * HEAD_DIM),
        "q_weight": GPU.randn(HEAD_DIM),
        "k_weight": GPU.randn(HEAD_DIM),
        "eps": EPS,
        "cos_sin": torch.randn(50, HEAD_DIM).cuda(),
        "positions": integers(40),
        "cache_locs": integers(3 * BLOCK_SIZE + 8),
        "kv_cache": kv_cache(),
        "num_heads": 4,
        "block_table": integers(5, 1, 3, dtype=torch.int32)[None],
        "seq_lens": integers(41, dtype=torch.int32),
        "scale": HEAD_DIM**-0.5,
    }


def project_parts(**arguments):
    parts = PartialAttention(**{name: arguments.pop(name) for name in PartialAttention._fields})
    return multiply_parts_before_norm(parts, **arguments)


def parts_linear_case():
    return project_parts, {
        "mixed": torch.randn(MAX_PARTS, 4, HEAD_DIM).cuda(),
        "scales": torch.rand(MAX_PARTS, 4, 2).cuda() + 1,
        "seq_lens": integers(300, dtype=torch.int32),
        "weight": weight(64, HIDDEN),
        "residual": GPU.randn(1, 64),
        "norm_weight": GPU.randn(64),
    }


WRITTEN = {
    parts_case: "kv_cache",
    store_case: "kv_cache",
    append_case: "tokens",
}
LATE = {
    linear_case: ["x"],
    norm_linear_case: ["x", "residual"],
    gated_linear_case: ["x"],
    hopper_linear_case: ["x"],
    hopper_norm_linear_case: ["x", "residual"],
    chained_linear_case: ["x", "residual"],
    rms_norm_case: ["x"],
    add_rms_norm_case: ["x", "residual"],
    tagged_words_case: ["x", "residual"],
    flagged_rows_case: ["x", "residual"],
    two_shots_case: ["x", "residual"],
    silu_and_mul_case: ["x"],
    store_case: ["qkv"],
    split_attention_case: ["queries", "kv_cache", "block_table"],
    whole_attention_case: ["queries", "kv_cache", "block_table"],
    planned_attention_case: ["queries", "kv_cache", "block_table"],
    plan_case: ["seq_lens"],
    shared_attention_case: ["queries", "kv_cache", "block_table", "tiles", "prefix_lens"],
    parts_case: ["qkv"],
    parts_linear_case: ["mixed", "scales", "residual"],
    sample_case: ["logits", "records", "slots", "positions"],
    append_case: ["slots", "positions", "token_ids"],
}


def outputs(case, result, arguments):
    """Returns copies of what a function gave and what it wrote in place."""
    tensors = [] if result is None else list(result) if isinstance(result, tuple) else [result]
    if case in WRITTEN:
        tensors.append(arguments[WRITTEN[case]])
    return [tensor.clone() for tensor in tensors]


@on_gpu_that_overlaps
@pytest.mark.parametrize(
    ("case", "late"),
    [
        pytest.param(case, late, id=f"{case.__name__.removesuffix('_case')}-{late}")
        for case, names in LATE.items()
        for late in names
    ],
)
def test_what_the_kernel_in_front_writes_is_waited_for(case, late):
    function, arguments = case()
    before = {name: x.clone() for name, x in arguments.items() if torch.is_tensor(x)}
    expected = outputs(case, function(**arguments), arguments)
    for name, tensor in before.items():
        arguments[name].copy_(tensor)
    arguments[late].zero_()
    too_early = outputs(case, function(**arguments), arguments)
    for name, tensor in before.items():
        if name != late:
            arguments[name].copy_(tensor)
    torch.cuda.synchronize()

    write_late(before[late], arguments[late])
    out = outputs(case, function(**arguments), arguments)

    assert any(not torch.equal(ours, early) for ours, early in zip(out, too_early, strict=True))
    assert all(torch.equal(ours, right) for ours, right in zip(out, expected, strict=True))


@on_gpu_that_overlaps
def test_without_waiting_a_kernel_would_read_too_early(monkeypatch):
    monkeypatch.setattr(
        activation, "dependent_launch", lambda _: {"IS_DEPENDENT": False, "launch_pdl": True}
    )
    function, arguments = silu_and_mul_case()
    expected = function(**arguments)
    source = arguments["x"].clone()
    arguments["x"].zero_()
    torch.cuda.synchronize()

    write_late(source, arguments["x"])

    assert not torch.equal(function(**arguments), expected)


@on_gpu_that_overlaps
@pytest.mark.parametrize("next_case", [hopper_linear_case, rms_norm_case, silu_and_mul_case])
def test_what_is_behind_products_waits_for_what_is_in_front_of_them(next_case):
    products, arguments = chained_linear_case()
    function, others = next_case()
    width = others["x"].shape[1]
    arguments["next_weight"] = weight(width, HIDDEN)
    torch.cuda.synchronize()
    expected = function(**others | {"x": products(**arguments)[0]})
    x = arguments["x"].clone()
    arguments["x"].zero_()
    too_early = function(**others | {"x": products(**arguments)[0]})
    torch.cuda.synchronize()

    write_late(x, arguments["x"])
    out = function(**others | {"x": products(**arguments)[0]})

    assert not torch.equal(out, too_early)
    assert torch.equal(out, expected)


def run_norm():
    function, arguments = rms_norm_case()
    return partial(function, **arguments)


def run_norm_and_products():
    norm = run_norm()
    function, arguments = chained_linear_case()

    def run():
        norm()
        function(**arguments)

    return run


@on_gpu_that_overlaps
@pytest.mark.parametrize(
    ("case", "name", "make_in_front"),
    [
        (linear_case, "weight", run_norm),
        (store_case, "cos_sin", run_norm_and_products),
        (store_case, "positions", run_norm_and_products),
        (store_case, "cache_locs", run_norm_and_products),
        (split_attention_case, "seq_lens", run_norm),
        (whole_attention_case, "seq_lens", run_norm),
        (planned_attention_case, "splits", run_norm),
        (parts_case, "kv_cache", run_norm_and_products),
        (parts_case, "block_table", run_norm_and_products),
        (parts_case, "seq_lens", run_norm_and_products),
        (parts_case, "positions", run_norm_and_products),
        (parts_case, "cache_locs", run_norm_and_products),
        (parts_linear_case, "seq_lens", run_norm_and_products),
        (parts_linear_case, "weight", run_norm_and_products),
    ],
)
def test_what_is_read_early_may_be_written_before_the_kernels_in_front(case, name, make_in_front):
    function, arguments = case()
    in_front = make_in_front()
    before = {key: x.clone() for key, x in arguments.items() if torch.is_tensor(x)}
    expected = outputs(case, function(**arguments), arguments)
    in_front()
    for key, tensor in before.items():
        arguments[key].copy_(tensor)
    arguments[name].zero_()
    torch.cuda.synchronize()

    write_late(before[name], arguments[name])
    in_front()
    out = outputs(case, function(**arguments), arguments)

    assert all(torch.equal(ours, right) for ours, right in zip(out, expected, strict=True))


def test_kernels_without_such_a_gpu_are_launched_as_ever(monkeypatch):
    is_supported = dependent_launch_module._is_supported.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert not is_supported(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert is_supported(torch.device("cuda"))
    assert dependent_launch(torch.zeros(1)) == {"IS_DEPENDENT": False}
