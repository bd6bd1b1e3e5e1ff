"""What only a GPU can show: captured graphs, and a cache beyond 32-bit addresses."""

import pytest
import torch

from kernels import reference, sampling_reference
from kernels.paged_attention_decode import paged_attention_decode
from kernels.paged_attention_prefill import paged_attention_prefill
from kernels.partial_attention import can_leave_parts, combine_parts, partial_attention
from kernels.qk_norm_rope_store import qk_norm_rope_store
from kernels.rms_norm import add_rms_norm
from kernels.sample import sample
from kernels.shared_prefix import SharedPrefixes
from kernels.silu_and_mul import silu_and_mul
from tests.kernels.sampling import COLUMNS, records_of
from tests.kernels.targets import Target, worst_row_error

pytestmark = pytest.mark.gpu
GPU = Target(device="cuda", dtype=torch.bfloat16)
HEAD_DIM = 128
SCALE = HEAD_DIM**-0.5


def whole_step(attend, ops, tensors):
    """Runs each operation once on the tensors, as a decode step chains them."""
    add_norm, activate, store, draw = ops
    normed, residual = add_norm(tensors["x"], tensors["residual"], tensors["weight"], 1e-6)
    queries = store(
        normed,
        tensors["head_weight"],
        tensors["head_weight"],
        1e-6,
        tensors["cos_sin"],
        tensors["positions"],
        tensors["cache_locs"],
        tensors["kv_cache"],
        4,
    )
    attended = attend(
        queries, tensors["kv_cache"], tensors["block_table"], tensors["seq_lens"], 400, SCALE
    )
    logits = activate(torch.cat((attended.flatten(1), residual[:, :512]), dim=-1))
    token_ids = draw(logits, tensors["records"], tensors["slots"], tensors["positions"], COLUMNS)
    return attended, logits, token_ids


def step_tensors(seq_lens, block_size=16):
    num_seqs, num_blocks = len(seq_lens), 200
    lengths = torch.tensor(seq_lens)
    table = torch.full((num_seqs, 400 // block_size), 2**30)
    blocks = iter((torch.randperm(num_blocks - 1) + 1).tolist())
    locations = torch.full((num_seqs,), -1)
    for seq, seq_len in enumerate(seq_lens):
        for index in range(-(-seq_len // block_size)):
            table[seq, index] = next(blocks)
        if seq_len:
            last = seq_len - 1
            locations[seq] = table[seq, last // block_size] * block_size + last % block_size
    angles = torch.rand(400, HEAD_DIM // 2) * 6
    temperatures = torch.tensor([0.0, 0.7, 1.0, 1.5])
    records, slots = records_of(temperatures, torch.arange(num_seqs))
    return {
        "x": GPU.randn(num_seqs, 8 * HEAD_DIM),
        "residual": GPU.randn(num_seqs, 8 * HEAD_DIM),
        "weight": GPU.randn(8 * HEAD_DIM),
        "head_weight": GPU.randn(HEAD_DIM),
        "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1).cuda(),
        "positions": (lengths - 1).clamp(min=0).cuda(),
        "cache_locs": locations.cuda(),
        "kv_cache": GPU.randn(2, num_blocks, 2, block_size, HEAD_DIM),
        "block_table": table.int().cuda(),
        "seq_lens": lengths.int().cuda(),
        "records": records.cuda(),
        "slots": slots.cuda(),
    }


def test_captured_step_replays_with_other_lengths_and_tables():
    ours = (add_rms_norm, silu_and_mul, qk_norm_rope_store, sample)
    twins = (
        reference.add_rms_norm,
        reference.silu_and_mul,
        reference.qk_norm_rope_store,
        sampling_reference.sample,
    )
    static = step_tensors([100, 1, 33, 250])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        whole_step(paged_attention_decode, ours, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attended, logits, token_ids = whole_step(paged_attention_decode, ours, static)
    for seq_lens in ([100, 1, 33, 250], [399, 0, 16, 1], [0, 0, 0, 0], [17, 400, 5, 64]):
        fresh = step_tensors(seq_lens)
        for name, tensor in fresh.items():
            static[name].copy_(tensor)
        graph.replay()
        expected, expected_logits, _ = whole_step(reference.paged_attention_decode, twins, fresh)
        assert worst_row_error(static["kv_cache"], fresh["kv_cache"]) < GPU.tolerance
        assert worst_row_error(attended, expected) < 2 * GPU.tolerance
        assert worst_row_error(logits, expected_logits) < 2 * GPU.tolerance
        drawn = sampling_reference.sample(
            logits, fresh["records"], fresh["slots"], fresh["positions"], COLUMNS
        )
        assert torch.equal(token_ids, drawn)


@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_pool_beyond_32_bit_addresses_is_written_and_read(block_size):
    # So many tokens that large blocks take the kernel for Hopper, where there is one.
    num_kv_heads, group, seq_len = 8, 2, 600
    elements = 2 * num_kv_heads * block_size * HEAD_DIM
    num_blocks = 2 * 2**31 // elements + 50  # keys alone pass 2^31 elements
    kv_cache = torch.full(
        (2, num_blocks, num_kv_heads, block_size, HEAD_DIM),
        torch.nan,
        dtype=GPU.dtype,
        device="cuda",
    )
    num_used = -(-seq_len // block_size)
    blocks = torch.cat(
        (torch.tensor([num_blocks - 1]), num_blocks - 2 - torch.randperm(40)[: num_used - 1])
    )
    tokens = torch.arange(seq_len)
    locations = blocks[tokens // block_size] * block_size + tokens % block_size
    num_heads = num_kv_heads * group
    qkv = GPU.randn(seq_len, (num_heads + 2 * num_kv_heads) * HEAD_DIM)
    weight, angles = GPU.randn(HEAD_DIM), torch.rand(seq_len, HEAD_DIM // 2)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).cuda()

    def store(op, cache, cache_locs):
        return op(
            qkv, weight, weight, 1e-6, cos_sin, tokens.cuda(), cache_locs.cuda(), cache, num_heads
        )

    queries = store(qk_norm_rope_store, kv_cache, locations)
    small = torch.zeros(2, num_used, num_kv_heads, block_size, HEAD_DIM, dtype=GPU.dtype).cuda()
    expected_queries = store(reference.qk_norm_rope_store, small, tokens)
    assert worst_row_error(queries, expected_queries) < GPU.tolerance
    assert kv_cache[:, : num_blocks - 41].isnan().all()

    table = blocks.int().cuda()[None]
    small_table = torch.arange(num_used, dtype=torch.int32, device="cuda")[None]
    starts = torch.tensor([0, seq_len], dtype=torch.int32, device="cuda")
    lengths = starts[1:]
    out = paged_attention_prefill(queries, kv_cache, table, starts, lengths, seq_len, SCALE)
    expected = reference.paged_attention_prefill(
        expected_queries.float(), small.float(), small_table, starts, lengths, seq_len, SCALE
    )
    assert worst_row_error(out, expected) < 2 * GPU.tolerance
    out = paged_attention_decode(queries[-1:], kv_cache, table, lengths, seq_len, SCALE)
    assert worst_row_error(out, expected[-1:]) < 2 * GPU.tolerance
    if can_leave_parts(qkv[-1:], kv_cache, num_heads, seq_len):
        last = (tokens[-1:].cuda(), locations[-1:].cuda(), kv_cache, num_heads)
        parts = partial_attention(
            *(qkv[-1:], weight, weight, 1e-6, cos_sin, *last, table, lengths, SCALE)
        )
        assert worst_row_error(combine_parts(parts), expected[-1:].flatten(1)) < 2 * GPU.tolerance
    prefix_len = seq_len // block_size * block_size
    shared = SharedPrefixes(
        tiles=torch.tensor([[0, 2, prefix_len]], dtype=torch.int32, device="cuda"),
        members=torch.tensor([0, 1], dtype=torch.int32, device="cuda"),
        prefix_lens=torch.full((2,), prefix_len, dtype=torch.int32, device="cuda"),
    )
    out = paged_attention_decode(
        queries[-1:].repeat(2, 1, 1),
        kv_cache,
        table.repeat(2, 1),
        lengths.repeat(2),
        seq_len,
        SCALE,
        shared=shared,
    )
    assert worst_row_error(out, expected[-1:].repeat(2, 1, 1)) < 2 * GPU.tolerance
