import random
from dataclasses import replace

import pytest
import torch

from engine_service.worker.input_batch import Bounds, InputBatch
from engine_service.worker.rows import DeviceRows, Rows
from tests.engine_service.plans import NewSequence, Row, make_plan
from tests.engine_service.worker.inputs import prepare

BLOCK_SIZE = 16
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def batch(request):
    return InputBatch(
        max_num_seqs=8,
        max_model_len=64,
        block_size=BLOCK_SIZE,
        vocab_size=200,
        device=torch.device(request.param),
    )


def test_prompt_becomes_ids_positions_and_slots(batch):
    new = {3: NewSequence(token_ids=range(100, 120), block_ids=[5, 2])}

    inputs = prepare(batch, make_plan([Row(3, 0, 20)], new))

    assert inputs.input_ids.tolist() == list(range(100, 120))
    assert inputs.positions.tolist() == list(range(20))
    assert inputs.metadata.cache_locs.tolist() == [*range(80, 96), *range(32, 36)]
    assert inputs.metadata.decode is None
    assert inputs.metadata.block_table[0, :2].tolist() == [5, 2]
    assert inputs.metadata.prefill.query_start_loc.tolist() == [0, 20]
    assert inputs.metadata.prefill.seq_lens.tolist() == [20]
    assert inputs.metadata.prefill.max_query_len == 20


def test_types_are_what_the_kernels_take(batch):
    new = {0: NewSequence([1, 2, 3], [1]), 1: NewSequence([4], [2])}

    inputs = prepare(batch, make_plan([Row(0, 0, 3), Row(1, 0, 1)], new))

    assert inputs.input_ids.dtype == torch.int32
    assert inputs.positions.dtype == inputs.metadata.cache_locs.dtype == torch.int64
    assert inputs.metadata.block_table.dtype == torch.int32
    for part in (inputs.metadata.decode, inputs.metadata.prefill):
        assert part.seq_lens.dtype == torch.int32
    assert inputs.metadata.prefill.query_start_loc.dtype == torch.int32
    assert inputs.sampling.records.dtype == inputs.sampling.positions.dtype == torch.int64


def test_rows_of_one_token_come_first(batch):
    new = {
        0: NewSequence(range(10), [1]),
        1: NewSequence(range(20, 30), [2]),
        2: NewSequence(range(40, 45), [3]),
    }

    inputs = prepare(batch, make_plan([Row(0, 0, 10), Row(1, 9, 1), Row(2, 2, 3)], new))

    assert inputs.input_ids.tolist() == [29, *range(10), 42, 43, 44]
    assert inputs.positions.tolist() == [9, *range(10), 2, 3, 4]
    assert inputs.metadata.decode.seq_lens.tolist() == [10, 0, 0]
    assert inputs.metadata.decode.max_seq_len == 10
    assert inputs.metadata.prefill.query_start_loc.tolist() == [1, 1, 11, 14]
    assert inputs.metadata.prefill.seq_lens.tolist()[1:] == [10, 5]


def test_sampled_rows_keep_the_order_of_the_plan(batch):
    seed = 2**63 - 1
    new = {
        0: NewSequence(range(10), [1], temperature=0.6, seed=seed),
        1: NewSequence(range(20, 30), [2], temperature=0.1, seed=7),
        2: NewSequence(range(40, 45), [3], temperature=0.2, seed=8),
    }
    rows = [Row(0, 0, 10), Row(2, 0, 3, is_sampled=False), Row(1, 9, 1)]

    sampling = prepare(batch, make_plan(rows, new)).sampling

    assert sampling.slots.tolist() == [0, 1]
    assert sampling.token_indices.tolist() == [10, 0]
    assert sampling.positions.tolist() == [10, 10]
    assert sampling.records[:3].tolist() == [list(new[slot].record) for slot in range(3)]


def test_step_without_sampled_rows_says_so(batch):
    new = {0: NewSequence(range(10), [1])}

    assert prepare(batch, make_plan([Row(0, 0, 5, is_sampled=False)], new)).sampling is None


def test_sampled_token_is_the_next_input(batch):
    new = {0: NewSequence([1, 2], [4]), 5: NewSequence([3], [6])}
    inputs = prepare(batch, make_plan([Row(0, 0, 2), Row(5, 0, 1)], new))

    batch.append_sampled(inputs.sampling, torch.tensor([77, 88]).to(inputs.positions.device))

    inputs = prepare(batch, make_plan([Row(5, 1, 1), Row(0, 2, 1)]))
    assert inputs.input_ids.tolist() == [88, 77]
    assert inputs.positions.tolist() == [1, 2]
    assert inputs.metadata.cache_locs.tolist() == [97, 66]


def test_slot_given_to_another_sequence_forgets_the_first(batch):
    first = NewSequence(range(20), [1, 2], temperature=1.0, seed=5)
    prepare(batch, make_plan([Row(0, 0, 20)], {0: first}))

    second = NewSequence(range(50, 53), [7])
    inputs = prepare(batch, make_plan([Row(0, 0, 3)], {0: second}))

    assert inputs.input_ids.tolist() == [50, 51, 52]
    assert inputs.metadata.cache_locs.tolist() == [112, 113, 114]
    assert inputs.sampling.records[0].tolist() == list(second.record)


def test_random_plans_equal_loops_over_tokens(batch):
    generator = random.Random(0)
    sequences = {}
    for _ in range(30):
        new = {}
        for slot in generator.sample(range(8), 2):
            token_ids = [generator.randrange(1000) for _ in range(generator.randint(1, 60))]
            block_ids = generator.sample(range(1, 99), -(-len(token_ids) // BLOCK_SIZE))
            sequences[slot] = new[slot] = NewSequence(token_ids, block_ids)
        rows = []
        for slot in generator.sample(sorted(sequences), generator.randint(1, len(sequences))):
            num_tokens = len(sequences[slot].token_ids)
            num_computed_tokens = generator.choice(
                [num_tokens - 1, generator.randrange(num_tokens)]
            )
            num_scheduled_tokens = generator.randint(1, num_tokens - num_computed_tokens)
            rows.append(Row(slot, num_computed_tokens, num_scheduled_tokens))

        inputs = prepare(batch, make_plan(rows, new))

        expected = []
        for row in sorted(rows, key=lambda row: row.num_scheduled_tokens > 1):
            sequence = sequences[row.slot]
            for offset in range(row.num_scheduled_tokens):
                position = row.num_computed_tokens + offset
                block_id = sequence.block_ids[position // BLOCK_SIZE]
                slot = block_id * BLOCK_SIZE + position % BLOCK_SIZE
                expected.append((sequence.token_ids[position], position, slot))
        assert expected == list(
            zip(
                inputs.input_ids.tolist(),
                inputs.positions.tolist(),
                inputs.metadata.cache_locs.tolist(),
                strict=True,
            )
        )


def test_padding_changes_no_row(batch):
    new = {
        0: NewSequence(range(10), [1], temperature=0.5, seed=3),
        1: NewSequence(range(20, 50), [2, 3]),
        2: NewSequence(range(40, 45), [4]),
    }
    plan = make_plan([Row(1, 0, 29, is_sampled=False), Row(0, 9, 1), Row(2, 2, 3)], new)
    rows = Rows.of(plan)
    exact = prepare(batch, plan)

    padded = batch.read(
        replace(batch.apply(plan, rows, 6, 48), sampled_rows=None),
        Bounds(num_tokens=48, max_query_len=48, max_decode_seq_len=64, has_prefills=True),
    )

    num_tokens = rows.num_tokens
    for name in ("input_ids", "positions"):
        assert torch.equal(getattr(padded, name)[:num_tokens], getattr(exact, name))
    locations = padded.metadata.cache_locs
    assert torch.equal(locations[:num_tokens], exact.metadata.cache_locs)
    assert locations[num_tokens:].tolist() == [-1] * (48 - num_tokens)
    assert padded.metadata.decode.seq_lens.tolist() == [10, 0, 0, 0, 0, 0]
    assert padded.metadata.prefill.query_start_loc.tolist() == [1, 1, 30, 33, 33, 33, 33]
    assert padded.metadata.prefill.seq_lens.tolist() == [10, 29, 5, 0, 0, 0]
    sampling = padded.sampling
    # Rows in the order of the device, of which only those that are sampled have a position.
    assert sampling.positions.tolist() == [10, 0, 5, 0, 0, 0]
    assert sampling.slots.tolist()[:3] == [0, 1, 2]
    assert sampling.token_indices.tolist()[:3] == [0, 29, 32]
    assert sampling.records[0].tolist() == list(new[0].record)


def test_nothing_but_padding_reads_and_writes_nothing(batch):
    packed = torch.from_numpy(Rows.none().packed(4, 16)).to(batch.device)

    inputs = batch.read(
        DeviceRows(packed=packed, num_rows=4, sampled_rows=None),
        Bounds(num_tokens=16, max_query_len=16, max_decode_seq_len=64, has_prefills=True),
    )

    assert inputs.metadata.cache_locs.tolist() == [-1] * 16
    assert inputs.metadata.decode.seq_lens.tolist() == [0] * 4
    assert inputs.metadata.prefill.query_start_loc.tolist() == [0] * 5
    assert inputs.sampling.positions.tolist() == [0] * 4
