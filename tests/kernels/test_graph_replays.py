"""That kernels which overlap in a graph give the same on each replay."""

from functools import partial

import pytest
import torch

from kernels.attention_parts import make_counters
from kernels.decode_splits import split_sequences
from kernels.linear import linear, linear_norm_linear
from kernels.paged_attention_decode import paged_attention_decode
from kernels.partial_attention import partial_attention
from kernels.rms_norm import rms_norm
from kernels.tile_shares import make_counters as make_product_counters
from tests.kernels.overlap import EPS, GPU, on_gpu_that_overlaps, weight
from tests.kernels.paged_inputs import Shape, paged_inputs


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Replaces the fixture that fills outputs: nothing may be launched between the kernels."""


@on_gpu_that_overlaps
@pytest.mark.parametrize("seq_lens", [[8000], [4000, 777, 1, 64, 0, 300, 128, 2048]], ids=len)
def test_chained_attention_in_a_graph_is_equal_in_bits_on_each_replay(seq_lens):
    shape = Shape(num_kv_heads=8, group=4, head_dim=128)
    inputs = paged_inputs(GPU, shape, [1] * len(seq_lens), seq_lens)
    attend = partial(
        paged_attention_decode,
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.seq_lens,
        max(seq_lens),
        inputs.scale,
        counters=make_counters("cuda"),
    )
    expected = attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [attend() for _ in range(10)]
    other_stream, noise = torch.cuda.Stream(), GPU.randn(1024, 1024)
    for replay in range(100):
        for out in outs:
            out.zero_()
        # So that programs start and end in another order each time.
        with torch.cuda.stream(other_stream):
            for _ in range(replay % 7):
                torch.mm(noise, noise)
        graph.replay()
        assert all(torch.equal(out, expected) for out in outs)


@on_gpu_that_overlaps
@pytest.mark.parametrize("num_rows", [3, 32, 64])
def test_products_that_follow_each_other_in_a_graph_are_equal_in_bits_on_each_replay(num_rows):
    x, residual = GPU.randn(num_rows, 5120), GPU.randn(num_rows, 5120)
    down, up = weight(5120, 5120), weight(25600, 5120)
    last = weight(5120, 12800)
    norm_weight = GPU.randn(5120)
    counters = [make_product_counters("cuda") for _ in range(3)]
    torch.cuda.synchronize()

    def layer():
        normed = rms_norm(x, norm_weight, EPS)
        gated, total = linear_norm_linear(
            normed, down, residual, norm_weight, EPS, up, *counters[:2], is_gated=True
        )
        return linear(gated, last, counters=counters[2]), total

    expected = layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [layer() for _ in range(5)]
    for _ in range(100):
        for out, total in results:
            out.zero_()
            total.zero_()
        graph.replay()
        for out, total in results:
            assert torch.equal(out, expected[0])
            assert torch.equal(total, expected[1])
    assert not any(counter.any() for counter in counters)


@on_gpu_that_overlaps
def test_one_sequence_in_a_graph_may_be_another_on_each_replay():
    shape = Shape(num_kv_heads=8, group=2, head_dim=128)
    lengths = [1, 128, 129, 700, 1024]
    all_inputs = [paged_inputs(GPU, shape, [1], [length]) for length in lengths]
    hidden, width = 1024, shape.num_heads * shape.head_dim
    x, residual, norm_weight = GPU.randn(1, hidden), GPU.randn(1, hidden), GPU.randn(hidden)
    packing, projection = weight(width + 2 * 8 * 128, hidden), weight(hidden, width)
    next_weight, qk_weight = weight(12288, hidden), GPU.randn(128)
    cos_sin = torch.randn(1024, 128).cuda()
    counters = [make_product_counters("cuda") for _ in range(2)]
    # What a step brings, as large as the largest needs.
    static = {
        "kv_cache": torch.zeros(2, 70, 8, shape.block_size, 128).to(GPU.dtype).cuda(),
        "block_table": torch.zeros(1, 64, dtype=torch.int32).cuda(),
        "seq_lens": torch.zeros(1, dtype=torch.int32).cuda(),
        "positions": torch.zeros(1, dtype=torch.int64).cuda(),
        "cache_locs": torch.zeros(1, dtype=torch.int64).cuda(),
    }

    def bring(inputs):
        length, cache = int(inputs.seq_lens), inputs.kv_cache
        table = inputs.block_table[:, : -(-length // shape.block_size)]
        static["kv_cache"][:, : cache.shape[1]].copy_(cache)
        static["block_table"][:, : table.shape[1]].copy_(table)
        static["seq_lens"].fill_(length)
        static["positions"].fill_(length - 1)
        block = int(table[0, -1])
        static["cache_locs"].fill_(block * shape.block_size + (length - 1) % shape.block_size)

    def layer():
        qkv = linear(x, packing, counters=counters[0])
        parts = partial_attention(
            qkv, qk_weight, qk_weight, EPS, cos_sin, num_heads=16, scale=0.1, **static
        )
        return linear_norm_linear(
            parts, projection, residual, norm_weight, EPS, next_weight,
            next_counters=counters[1], is_gated=True,
        )  # fmt: skip

    expected = []
    for inputs in all_inputs:
        bring(inputs)
        torch.cuda.synchronize()
        expected.append(layer())
    assert not torch.equal(expected[0][0], expected[1][0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [layer() for _ in range(5)]
    for replay in range(50):
        bring(all_inputs[replay % 5])
        graph.replay()
        for ours in results:
            assert all(map(torch.equal, ours, expected[replay % 5]))


@on_gpu_that_overlaps
def test_attention_in_a_graph_is_planned_anew_on_each_replay():
    all_lens = [[4000, 777, 1, 64, 0, 300, 128, 2048], [5, 0, 3000, 20, 4000, 1, 1, 64], [900] * 8]
    shape = Shape(num_kv_heads=8, group=4, head_dim=128)
    inputs = paged_inputs(GPU, shape, [1] * 8, [4000] * 8)
    seq_lens, counters = inputs.seq_lens.clone(), make_counters("cuda")
    x, product_counters = GPU.randn(9, 256), make_product_counters("cuda")
    matrix, norm_weight = weight(40, 256), GPU.randn(256)
    torch.cuda.synchronize()

    def step():
        # As in the first layer: a product, the plan, a kernel that waits, attention.
        linear(x, matrix, counters=product_counters)
        splits = split_sequences(seq_lens, 4000, 8)
        rms_norm(x, norm_weight, EPS)
        return paged_attention_decode(
            *(inputs.queries, inputs.kv_cache, inputs.block_table, seq_lens, 4000, inputs.scale),
            counters=counters,
            splits=splits,
        )

    expected = []
    for lens in all_lens:
        seq_lens.copy_(torch.tensor(lens))
        expected.append(step())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [step() for _ in range(5)]
    for replay in range(99):
        seq_lens.copy_(torch.tensor(all_lens[replay % 3]))
        graph.replay()
        assert all(torch.equal(out, expected[replay % 3]) for out in outs)
    assert not counters.any()
