from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from engine_service.core.sequence import MAX_KEY_TILE
from kernels import reference
from kernels.paged_attention_prefill import (
    _choose_tiling,
    _find_sequence,
    _paged_attention_prefill_triton,
    _Tiling,
    paged_attention_prefill,
)
from tests.kernels.paged_inputs import NO_BLOCK, Shape, paged_inputs
from tests.kernels.targets import (
    Target,
    in_float32,
    on_each_device,
    on_each_target,
    worst_row_error,
)

CPU = Target(device="cpu", dtype=torch.float32)
# A fresh prompt, a chunk after cached tokens, nothing, a token that fills its block.
QUERY_LENS = [63, 5, 0, 1]
SEQ_LENS = [63, 70, 0, 64]


def by_twin(inputs, out=None, window=0):
    return reference.paged_attention_prefill(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.query_start_loc,
        inputs.seq_lens,
        max(inputs.query_lens, default=0),
        inputs.scale,
        out,
        window,
    )


def by_kernel(inputs, tiling=None, out=None, window=0):
    max_query_len = max(inputs.query_lens, default=0)
    return _paged_attention_prefill_triton(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.query_start_loc,
        inputs.seq_lens,
        inputs.scale,
        tiling or _choose_tiling(inputs.queries, inputs.kv_cache, max_query_len, False),
        out,
        window,
    )


def with_descriptors(target, head_dim):
    """Returns a tiling that reads through the copy engine, which the interpreter emulates."""
    is_wide = target.dtype == torch.float32
    return _Tiling(
        rows=64, tile=32 if is_wide else 64, has_descriptors=True, num_warps=4, num_stages=2
    )


@on_each_device
@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_prefill_is_attention_by_definition(target, block_size, group, head_dim):
    shape = Shape(group=group, head_dim=head_dim, block_size=block_size)
    inputs = paged_inputs(target, shape, QUERY_LENS, SEQ_LENS)
    truth = inputs.truth()
    assert worst_row_error(by_twin(inputs), truth) < target.tolerance
    assert worst_row_error(by_kernel(inputs), truth) < target.tolerance


@on_each_device
@pytest.mark.parametrize("attend", [by_twin, by_kernel])
def test_given_output_keeps_the_rows_of_no_sequence(target, attend):
    inputs = paged_inputs(target, Shape(), [5, 0, 7], [9, 40, 7])
    # Tokens 0 to 2 belong to others, and so do those from 15 on.
    queries = torch.cat((target.randn(3, 4, 64), inputs.queries, target.randn(4, 4, 64)))
    moved = replace(inputs, queries=queries, query_start_loc=inputs.query_start_loc + 3)
    out = target.randn(*queries.shape)
    before = out.clone()

    assert attend(moved, out=out) is out

    assert torch.equal(out[:3], before[:3])
    assert torch.equal(out[15:], before[15:])
    assert worst_row_error(out[3:15], inputs.truth()) < target.tolerance


@on_each_device
@pytest.mark.parametrize("num_before", [1, 31, 32, 33, 100])
def test_rows_before_the_first_sequence_are_left_alone(target, num_before):
    """As in a step in which others decode, whose rows come first and have no tokens here."""
    inputs = paged_inputs(target, Shape(), [5, 40], [9, 40])
    queries = torch.cat((target.randn(num_before, 4, 64), inputs.queries))
    decodes = torch.full((num_before,), num_before, dtype=torch.int32, device=target.device)
    lens = torch.full_like(decodes, 70)
    # Whoever looks in front of these finds a sequence that looks plausible.
    starts = torch.cat((decodes[:1] * 0, decodes, inputs.query_start_loc + num_before))[1:]
    seq_lens = torch.cat((lens[:1], lens, inputs.seq_lens))[1:]
    table = torch.cat((inputs.block_table[:1].expand(num_before, -1), inputs.block_table))
    out = target.randn(*queries.shape)
    before = out.clone()
    moved = replace(
        inputs, queries=queries, query_start_loc=starts, seq_lens=seq_lens, block_table=table
    )

    by_kernel(moved, out=out)

    assert torch.equal(out[:num_before], before[:num_before])
    assert worst_row_error(out[num_before:], inputs.truth()) < target.tolerance


@on_each_target
@pytest.mark.parametrize("block_size", [64, 256])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_tensor_descriptors_read_the_same_tiles(target, block_size, head_dim):
    inputs = paged_inputs(
        target, Shape(head_dim=head_dim, block_size=block_size), QUERY_LENS, SEQ_LENS
    )
    out = by_kernel(inputs, with_descriptors(target, head_dim))
    assert worst_row_error(out, inputs.truth()) < target.tolerance


@on_each_device
@pytest.mark.parametrize("window", [1, 32, 33, 1000])
@pytest.mark.parametrize("group", [1, 3])
def test_window_hides_all_tokens_before_it(target, window, group):
    query_lens, seq_lens = [63, 5, 0, 1, 100, 20], [63, 70, 0, 64, 100, 300]
    inputs = paged_inputs(target, Shape(num_kv_heads=1, group=group), query_lens, seq_lens)
    truth = inputs.truth(window)
    # No block is read of which no tile has a token in the window of the first query.
    for seq, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        first_tile = max(0, seq_len - query_len + 1 - window) // MAX_KEY_TILE * MAX_KEY_TILE
        inputs.block_table[seq, : first_tile // 16] = NO_BLOCK
    assert worst_row_error(by_twin(inputs, window=window), truth) < target.tolerance
    assert worst_row_error(by_kernel(inputs, window=window), truth) < target.tolerance


@on_each_target
@pytest.mark.parametrize("window", [40, 64])
def test_window_over_tensor_descriptors(target, window):
    inputs = paged_inputs(target, Shape(block_size=64), [150, 7], [150, 200])
    out = by_kernel(inputs, with_descriptors(target, 64), window=window)
    assert worst_row_error(out, inputs.truth(window)) < target.tolerance


@in_float32
@pytest.mark.parametrize("query_len", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("context_len", [0, 1, 31, 32, 33])
def test_every_offset_of_a_chunk_sees_the_right_keys(target, query_len, context_len):
    inputs = paged_inputs(
        target, Shape(num_kv_heads=1), [query_len, 1], [context_len + query_len, 3]
    )
    truth = inputs.truth()
    assert worst_row_error(by_twin(inputs), truth) < target.tolerance
    assert worst_row_error(by_kernel(inputs), truth) < target.tolerance


@in_float32
@pytest.mark.parametrize(
    "shape",
    [
        Shape(group=5),
        Shape(num_kv_heads=1, group=7, head_dim=32),
        Shape(head_dim=16, block_size=32),
        Shape(num_kv_heads=1, head_dim=256),
        Shape(num_kv_heads=1, group=20, block_size=48),
        Shape(num_kv_heads=5, group=1, block_size=1),
    ],
)
def test_other_shapes_work_too(target, shape):
    inputs = paged_inputs(target, shape, [40, 3], [40, 50])
    truth = inputs.truth()
    assert worst_row_error(by_twin(inputs), truth) < target.tolerance
    assert worst_row_error(by_kernel(inputs), truth) < target.tolerance


@triton.jit
def _find_sequence_kernel(query_start_loc, num_seqs, query_tiles, out, TOKENS: tl.constexpr):
    tile = tl.program_id(0)
    seq = _find_sequence(query_start_loc, num_seqs, tl.load(query_tiles + tile), TOKENS)
    tl.store(out + tile, seq)


@in_float32
@pytest.mark.parametrize("num_seqs", [1, 2, 255, 256, 257, 600])
def test_each_tile_finds_its_sequence_among_hundreds(target, num_seqs):
    tokens = 16
    query_lens = torch.randint(0, 40, (num_seqs,))
    starts = torch.cat((torch.zeros(1).long(), query_lens.cumsum(0)))
    first_tiles = starts[:-1] // tokens + torch.arange(num_seqs)
    last_tiles = first_tiles + (query_lens - 1).clamp(min=0) // tokens
    seqs = torch.tensor([0, num_seqs // 2, num_seqs - 1])
    tiles = torch.cat((first_tiles[seqs], last_tiles[seqs])).to(target.device)
    found = torch.empty(6, dtype=torch.int64, device=target.device)
    _find_sequence_kernel[(6,)](
        starts.to(target.device, torch.int32), num_seqs, tiles, found, TOKENS=tokens
    )
    assert found.tolist() == seqs.repeat(2).tolist()


@in_float32
def test_no_tokens_and_no_sequences_give_no_rows(target):
    for query_lens, seq_lens in (([], []), ([0, 0], [0, 30])):
        inputs = paged_inputs(target, Shape(), query_lens, seq_lens)
        assert by_kernel(inputs).shape == (0, 4, 64)
        assert by_twin(inputs).shape == (0, 4, 64)


def test_prompt_in_chunks_attends_as_the_whole_prompt():
    inputs = paged_inputs(CPU, Shape(), [90], [90])
    whole = by_twin(inputs)
    start = 0
    for end in (1, 17, 33, 90):
        chunk = reference.paged_attention_prefill(
            inputs.queries[start:end],
            inputs.kv_cache,
            inputs.block_table,
            torch.tensor([0, end - start], dtype=torch.int32),
            torch.tensor([end], dtype=torch.int32),
            end - start,
            inputs.scale,
        )
        assert worst_row_error(chunk, whole[start:end]) < 1e-6
        start = end


def test_tiles_shrink_to_short_queries_and_use_descriptors_where_they_can():
    queries = torch.zeros(2048, 8, 128, dtype=torch.bfloat16)

    def tiling(block_size, max_query_len, has_descriptors=True, padding=0):
        pool = torch.zeros(2, 1, 2, block_size, 128 + padding, dtype=torch.bfloat16)
        return _choose_tiling(queries, pool[..., :128], max_query_len, has_descriptors)

    assert tiling(64, 1000).rows == 128
    assert tiling(64, 3).rows == 16
    assert tiling(64, 1000).has_descriptors
    assert not tiling(64, 1000, has_descriptors=False).has_descriptors
    assert not tiling(64, 3).has_descriptors
    assert not tiling(16, 1000).has_descriptors
    assert not tiling(64, 1000, padding=4).has_descriptors


def test_wrong_arguments_are_refused_by_name_and_value():
    inputs = paged_inputs(CPU, Shape(), [5, 9], [5, 9])

    def call(**changes):
        arguments = {
            "queries": inputs.queries,
            "kv_cache": inputs.kv_cache,
            "block_table": inputs.block_table,
            "query_start_loc": inputs.query_start_loc,
            "seq_lens": inputs.seq_lens,
            "max_query_len": 9,
            "scale": inputs.scale,
        }
        return paged_attention_prefill(**(arguments | changes))

    assert torch.equal(call(), by_twin(inputs))
    for message, changes in [
        (r"query_start_loc has shape \(2,\)", {"query_start_loc": inputs.query_start_loc[1:]}),
        ("query_start_loc has dtype torch.int64", {"query_start_loc": torch.zeros(3).long()}),
        ("seq_lens has dtype torch.int64", {"seq_lens": inputs.seq_lens.long()}),
        ("num_heads is 3", {"queries": inputs.queries[:, :3]}),
        ("scale is -1.0", {"scale": -1.0}),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**changes)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [16, 64])
def test_bfloat16_is_at_most_twice_as_far_off_as_torch(block_size):
    target = Target(device="cuda", dtype=torch.bfloat16)
    shape = Shape(num_kv_heads=8, group=2, head_dim=128, block_size=block_size)
    inputs = paged_inputs(target, shape, [2100], [2100])
    out = paged_attention_prefill(
        inputs.queries,
        inputs.kv_cache,
        inputs.block_table,
        inputs.query_start_loc,
        inputs.seq_lens,
        2100,
        inputs.scale,
    )
    by_torch = torch.nn.functional.scaled_dot_product_attention(
        inputs.queries.transpose(0, 1)[None],
        inputs.keys[0].transpose(0, 1)[None],
        inputs.values[0].transpose(0, 1)[None],
        is_causal=True,
        enable_gqa=True,
    )[0].transpose(0, 1)
    truth = inputs.truth()
    assert (out - truth).norm() <= 2 * (by_torch - truth).norm()
