import pytest
import torch

from kernels import reference
from kernels.slots import (
    SlotRows,
    _append_tokens_triton,
    _read_slots_triton,
    append_tokens,
    read_slots,
)
from tests.kernels.targets import in_float32

NUM_SLOTS, MAX_MODEL_LEN, BLOCK_SIZE = 6, 700, 16
PADDING = -1


def make_state(device):
    max_blocks = -(-MAX_MODEL_LEN // BLOCK_SIZE)
    return {
        "tokens": torch.randint(0, 1000, (NUM_SLOTS, MAX_MODEL_LEN), dtype=torch.int32),
        "block_table": torch.randint(1, 99, (NUM_SLOTS, max_blocks), dtype=torch.int32),
    }, device


def arguments(state_and_device, rows):
    """Each row is (slot, num_computed_tokens, query_len)."""
    state, device = state_and_device
    slots, num_computed, query_lens = torch.tensor(rows).T.contiguous()
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), query_lens.cumsum(0)))
    is_decode = (query_lens == 1).long()
    # All but every other row of several tokens.
    is_sampled = is_decode | (torch.arange(len(rows)) % 2 == 0)
    tensors = [*state.values(), slots, num_computed, starts, is_decode, is_sampled.long()]
    num_tokens, max_query_len = int(starts[-1]), int(query_lens.max())
    return *(x.to(device) for x in tensors), num_tokens, max_query_len, BLOCK_SIZE


def check_equal(ours: SlotRows, twin: SlotRows):
    num_blocks = -(-twin.seq_lens // BLOCK_SIZE)
    indices = torch.arange(twin.block_table.shape[1], device=num_blocks.device)
    is_used = indices < num_blocks[:, None]
    for name, mine, theirs in zip(SlotRows._fields, ours, twin, strict=True):
        assert mine.dtype == theirs.dtype, name
        if name == "block_table":
            mine, theirs = mine[is_used], theirs[is_used]
        assert torch.equal(mine, theirs), name


@in_float32
@pytest.mark.parametrize(
    "rows",
    [
        [(0, 0, 1)],
        [(3, 15, 1), (1, 16, 1), (5, 698, 1)],
        [(2, 0, 300), (4, 17, 512), (0, 40, 1)],
        [(1, 9, 1), (0, PADDING, 1), (0, PADDING, 1)],
        [(0, PADDING, 1)],
        [(2, 5, 1), (0, PADDING, 0), (0, PADDING, 900)],
    ],
)
def test_rows_of_kernel_and_twin_are_equal(target, rows):
    given = arguments(make_state(target.device), rows)

    twin = SlotRows(*reference.read_slots(*given))

    check_equal(_read_slots_triton(*given), twin)
    check_equal(read_slots(*given), twin)


@pytest.mark.parametrize("read", [reference.read_slots, _read_slots_triton])
@in_float32
def test_row_is_the_part_of_its_sequence_that_it_computes(target, read):
    (state, device) = make_state(target.device)
    rows = SlotRows(*read(*arguments((state, device), [(4, 30, 5), (2, 10, 1)])))

    assert rows.input_ids.tolist() == [*state["tokens"][4, 30:35].tolist(), state["tokens"][2, 10]]
    assert rows.positions.tolist() == [30, 31, 32, 33, 34, 10]
    table = state["block_table"]
    expected = [table[4, p // 16] * 16 + p % 16 for p in range(30, 35)] + [table[2, 0] * 16 + 10]
    assert rows.cache_locs.tolist() == expected
    assert rows.seq_lens.tolist() == rows.next_positions.tolist() == [35, 11]
    assert rows.decode_seq_lens.tolist() == [0, 11]
    assert rows.block_table[0, :3].tolist() == table[4, :3].tolist()


@pytest.mark.parametrize("read", [reference.read_slots, _read_slots_triton])
@in_float32
def test_padding_reads_and_stores_nothing(target, read):
    rows = SlotRows(*read(*arguments(make_state(target.device), [(0, PADDING, 1)] * 3)))

    assert rows.cache_locs.tolist() == [-1] * 3
    assert rows.seq_lens.tolist() == rows.decode_seq_lens.tolist() == [0] * 3
    assert rows.next_positions.tolist() == [0] * 3
    assert rows.input_ids.tolist() == rows.positions.tolist() == [0] * 3


@pytest.mark.parametrize("append", [reference.append_tokens, _append_tokens_triton, append_tokens])
@in_float32
def test_tokens_are_written_where_they_belong_and_nowhere_else(target, append):
    tokens = torch.zeros(4, 30, dtype=torch.int32)
    slots = torch.tensor([3, 0, 0, 1])
    positions = torch.tensor([7, 0, 0, 29])
    token_ids = torch.tensor([70, 71, 72, 73])
    on_device = tokens.to(target.device)

    append(on_device, *(x.to(target.device) for x in (slots, positions, token_ids)))

    tokens[3, 7], tokens[1, 29] = 70, 73
    assert torch.equal(on_device.cpu(), tokens)


@pytest.mark.parametrize("append", [reference.append_tokens, _append_tokens_triton])
@in_float32
def test_what_is_no_token_is_written_as_one_that_can_be_looked_up(target, append):
    tokens = torch.full((2, 9), 5, dtype=torch.int32, device=target.device)
    slots, positions = torch.tensor([1, 0]), torch.tensor([3, 8])

    append(tokens, *(x.to(target.device) for x in (slots, positions, torch.tensor([-1, 7]))))

    assert (tokens[1, 3], tokens[0, 8]) == (0, 7)
    assert (tokens == 5).sum() == 16


@in_float32
def test_many_rows_are_all_written(target):
    tokens = torch.zeros(600, 3, dtype=torch.int32, device=target.device)
    slots = torch.randperm(600).to(target.device)
    ones = torch.ones_like(slots)

    _append_tokens_triton(tokens, slots, ones, slots + 5)

    assert torch.equal(tokens[:, 1], torch.arange(600, device=target.device) + 5)
    assert not tokens[:, [0, 2]].any()


def test_wrong_tensors_are_refused_by_name_and_value():
    given = list(arguments(make_state("cpu"), [(0, 0, 1), (1, 0, 1)]))
    with pytest.raises(ValueError, match=r"query_start_loc has shape \(2,\); expected \(3\)"):
        read_slots(*given[:4], given[4][:2], *given[5:])
    with pytest.raises(ValueError, match=r"tokens has dtype torch.int64"):
        read_slots(given[0].long(), *given[1:])
    with pytest.raises(ValueError, match=r"positions has dtype torch.int32"):
        append_tokens(given[0], given[2], given[2].int(), given[2])
