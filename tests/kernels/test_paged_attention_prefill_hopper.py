"""The kernel for Hopper, which only such a GPU can run; what else there is can compile it."""

from dataclasses import replace

import pytest
import torch

from kernels.paged_attention_prefill import paged_attention_prefill
from kernels.paged_attention_prefill_hopper import can_attend, paged_attention_prefill_hopper
from tests.kernels.paged_inputs import Shape, paged_inputs
from tests.kernels.targets import Target, worst_row_error
from tests.kernels.uninterpreted import run_uninterpreted

BFLOAT16 = Target(device="cuda", dtype=torch.bfloat16)
# A prompt of several tiles, one of one, a chunk behind cached tokens, nothing, single tokens.
QUERY_LENS = [700, 63, 300, 0, 1, 129]
SEQ_LENS = [700, 63, 900, 0, 1300, 130]


def is_hopper():
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def on_hopper(test):
    return pytest.mark.gpu(pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU")(test))


def attend(inputs, out=None):
    return paged_attention_prefill_hopper(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.query_start_loc,
        inputs.seq_lens,
        inputs.scale,
        out,
    )


def shape(**changes):
    return replace(Shape(head_dim=128, block_size=64), **changes)


@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_size", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_it_is_attention_by_definition(dtype, block_size, group):
    target = Target(device="cuda", dtype=dtype)
    inputs = paged_inputs(target, shape(group=group, block_size=block_size), QUERY_LENS, SEQ_LENS)
    assert worst_row_error(attend(inputs), inputs.truth()) < target.tolerance


@on_hopper
@pytest.mark.parametrize("group", [16, 32, 64])
def test_many_queries_share_a_head(group):
    inputs = paged_inputs(BFLOAT16, shape(num_kv_heads=1, group=group), [40, 3], [300, 3])
    assert worst_row_error(attend(inputs), inputs.truth()) < BFLOAT16.tolerance


@on_hopper
@pytest.mark.parametrize("query_len", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("context_len", [0, 1, 63, 64, 65, 127, 128, 200])
def test_every_offset_of_a_chunk_sees_the_right_keys(query_len, context_len):
    query_lens, seq_lens = [query_len, 2], [context_len + query_len, 2]
    inputs = paged_inputs(BFLOAT16, shape(num_kv_heads=1, group=4), query_lens, seq_lens)
    assert worst_row_error(attend(inputs), inputs.truth()) < BFLOAT16.tolerance


@on_hopper
@pytest.mark.parametrize("num_seqs", [1, 255, 256, 257, 700])
def test_sequences_beyond_one_chunk_of_the_search_are_found(num_seqs):
    lens = [3 + number % 5 for number in range(num_seqs)]
    inputs = paged_inputs(BFLOAT16, shape(num_kv_heads=1), lens, [9] * num_seqs)
    assert worst_row_error(attend(inputs), inputs.truth()) < BFLOAT16.tolerance


@on_hopper
def test_rows_of_no_sequence_are_left_alone():
    """As in a step in which others decode, whose rows come first, with padding behind all."""
    inputs = paged_inputs(BFLOAT16, shape(), [200, 40], [230, 40])
    num_before, num_behind = 100, 30
    heads = inputs.queries.shape[1:]
    queries = torch.cat(
        (
            BFLOAT16.randn(num_before, *heads),
            inputs.queries,
            torch.full((num_behind, *heads), torch.nan, dtype=torch.bfloat16, device="cuda"),
        )
    )
    decodes = torch.full((num_before,), num_before, dtype=torch.int32, device="cuda")
    moved = replace(
        inputs,
        queries=queries,
        query_start_loc=torch.cat((decodes, inputs.query_start_loc + num_before)),
        seq_lens=torch.cat((torch.full_like(decodes, 70), inputs.seq_lens)),
        block_table=torch.cat((inputs.block_table[:1].expand(num_before, -1), inputs.block_table)),
    )
    out = BFLOAT16.randn(*queries.shape)
    before = out.clone()

    assert attend(moved, out) is out

    assert torch.equal(out[:num_before], before[:num_before])
    assert torch.equal(out[-num_behind:], before[-num_behind:])
    assert worst_row_error(out[num_before:-num_behind], inputs.truth()) < BFLOAT16.tolerance


@on_hopper
def test_a_captured_launch_follows_what_its_inputs_become():
    inputs = paged_inputs(BFLOAT16, shape(), [500, 200], [500, 260])
    out = torch.empty_like(inputs.queries)
    attend(inputs, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend(inputs, out)
    later = paged_inputs(BFLOAT16, shape(), [100, 600], [160, 600])
    inputs.queries.copy_(later.queries)
    inputs.query_start_loc.copy_(later.query_start_loc)
    inputs.seq_lens.copy_(later.seq_lens)
    # The blocks of the earlier sequences hold as many tokens, and are taken in the same order.
    order = torch.cat([row[row < 2**30] for row in inputs.block_table])
    counts = [-(-length // 64) for length in (160, 600)]
    inputs.block_table[0, : counts[0]] = order[: counts[0]]
    inputs.block_table[1, : counts[1]] = order[counts[0] : sum(counts)]
    for row, (keys, values) in enumerate(zip(later.keys, later.values, strict=True)):
        for token in range(len(keys)):
            block = inputs.block_table[row, token // 64]
            inputs.kv_cache[0, block, :, token % 64] = keys[token]
            inputs.kv_cache[1, block, :, token % 64] = values[token]

    graph.replay()

    assert worst_row_error(out, later.truth()) < BFLOAT16.tolerance


@on_hopper
def test_it_takes_what_it_can_and_says_what_it_cannot():
    queries = torch.zeros(1, 8, 128, dtype=torch.bfloat16, device="cuda")

    def cache(block_size=64, padding=0, num_kv_heads=2):
        pool = torch.zeros(2, 1, num_kv_heads, block_size, 128 + padding, device="cuda")
        return pool.bfloat16()[..., :128]

    assert can_attend(queries, cache())
    assert can_attend(queries, cache(block_size=256))
    assert can_attend(queries, cache(padding=8))
    assert not can_attend(queries, cache(padding=4))
    assert not can_attend(queries, cache(block_size=1).expand(-1, -1, -1, 64, -1))
    assert not can_attend(queries, cache(block_size=32))
    assert not can_attend(queries.float(), cache())
    assert not can_attend(queries.view(1, 16, 64), cache())
    assert not can_attend(queries[:, :6], cache())
    assert not can_attend(queries.cpu(), cache())


@on_hopper
def test_long_prompts_take_it(monkeypatch):
    """Both kernels give the same, so a call of the wrong one would go unseen."""
    module = "kernels.paged_attention_prefill"
    calls = []
    monkeypatch.setattr(
        f"{module}.paged_attention_prefill_hopper", lambda *args: calls.append(args)
    )
    for num_tokens in (511, 512):
        inputs = paged_inputs(BFLOAT16, shape(), [num_tokens], [num_tokens])
        paged_attention_prefill(
            inputs.queries,
            inputs.kv_cache,
            inputs.block_table,
            inputs.query_start_loc,
            inputs.seq_lens,
            num_tokens,
            inputs.scale,
        )
    assert [len(queries) for queries, *_ in calls] == [512]


COMPILE = """
import pathlib
import subprocess
import sys

import torch
import triton
from triton import compile
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.experimental.gluon._runtime import GluonASTSource
from kernels.paged_attention_prefill_hopper import _describe, _prefill_kernel

queries = torch.empty(100, 32, 128, dtype=torch.{dtype})
kv = torch.empty(4096, 128, dtype=torch.{dtype})
descriptors = (
    _describe(queries, queries.shape, queries.stride(), [16, 4, 128]),
    _describe(kv, kv.shape, kv.stride(), [64, 64]),
)
types = [native_specialize_impl(CUDABackend, one, False, True, True)[0] for one in descriptors]
types += ["*i32"] * 3 + ["*{type}"] + ["i32"] * 5 + ["fp32"] + ["constexpr"] * 3
names = _prefill_kernel.arg_names
constants = {{(names.index(name),): value for name, value in dict(
    NUM_KV_HEADS=8, GROUP=4, BLOCK_SIZE=64).items()}}
source = GluonASTSource(_prefill_kernel, dict(zip(names, types, strict=True)), constants, {{}})
compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4))
cubin = pathlib.Path(sys.argv[1])
cubin.write_bytes(compiled.asm["cubin"])
tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True)
print(compiled.asm["ptx"], usage.stdout)
"""


@pytest.mark.parametrize(("dtype", "short"), [("bfloat16", "bf16"), ("float16", "fp16")])
def test_it_compiles_without_a_gpu(tmp_path, dtype, short):
    program = COMPILE.format(dtype=dtype, type=short)
    printed = run_uninterpreted(tmp_path, "-c", program, tmp_path / "cubin")
    for instruction in ("wgmma.mma_async", "cp.async.bulk.tensor", "setmaxnreg"):
        assert instruction in printed
    # What registers do not hold goes to local memory, which is slow.
    assert " STACK:0 " in printed
    assert " LOCAL:0 " in printed
