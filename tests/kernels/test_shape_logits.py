import random

import pytest
import torch

from kernels import sampling_reference
from kernels.shape_logits import _shape_logits_triton, shape_logits
from tests.kernels.sampling import ALWAYS, COLUMNS, edits_of, records_by_row
from tests.kernels.targets import in_float32, on_each_device


def random_case(target, num_rows, vocab_size, seed=0):
    """Rows with every kind of edit, each alone and together, and rows with none."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    max_len = 90
    logits = target.randn(num_rows, vocab_size) * 3
    positions = torch.randint(1, max_len, (num_rows,))
    prompts = (positions * torch.rand(num_rows)).long()
    penalties = {
        "repetition_penalty": torch.tensor([choose.choice([1, 0.5, 1.3]) for _ in positions]),
        "frequency_penalty": torch.tensor([choose.choice([0, -0.5, 1.5]) for _ in positions]),
        "presence_penalty": torch.tensor([choose.choice([0, 0.7]) for _ in positions]),
    }
    records, slots = records_by_row(num_rows, num_prompt_tokens=prompts, **penalties)
    # Few tokens, so that many are repeated.
    tokens = torch.randint(0, min(vocab_size, 12), (len(records), max_len), dtype=torch.int32)
    by_slot = {}
    for slot, position in zip(slots.tolist(), positions.tolist(), strict=True):
        entries = []
        for _ in range(choose.choice([0, 3, 25])):
            kind, token = choose.choice("abc"), choose.randrange(vocab_size)
            if kind == "a":
                entries.append((token, choose.uniform(-9, 9), ALWAYS, ()))
            elif kind == "b":
                entries.append((token, -torch.inf, choose.randrange(100), ()))
            else:
                count = choose.randrange(1, 3)
                known = tokens[slot, max(0, position - count) : position].tolist()
                prefix = known if choose.random() < 0.7 else [choose.randrange(12)]
                entries.append((token, -torch.inf, ALWAYS, tuple(prefix)))
        allowed = None
        if choose.random() < 0.4:
            allowed = {choose.randrange(vocab_size) for _ in range(vocab_size)}
        by_slot[slot] = (entries, allowed)
    edits, counts = edits_of(by_slot, len(records), vocab_size, target.device)
    records[:, COLUMNS["num_biases"]] = counts
    records[:, COLUMNS["is_restricted"]] = torch.tensor(
        [slot in by_slot and by_slot[slot][1] is not None for slot in range(len(records))]
    )
    on_device = (x.to(target.device) for x in (tokens, records, slots, positions))
    return (logits, *on_device, edits, COLUMNS)


@on_each_device
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(6, 100), (3, 1500), (20, 61)])
def test_kernel_and_twin_give_the_same(target, num_rows, vocab_size):
    case = random_case(target, num_rows, vocab_size)

    shaped = _shape_logits_triton(*case)

    assert shaped.dtype == torch.float32
    expected = sampling_reference.shape_logits(*case)
    assert (expected != case[0]).any(1).sum() > num_rows / 2
    torch.testing.assert_close(shaped, expected, rtol=1e-6, atol=1e-6)


@in_float32
def test_rows_that_ask_for_nothing_keep_their_logits(target):
    logits = target.randn(3, 200)
    records, slots = records_by_row(3, target.device)
    edits, _ = edits_of({}, len(records), 200, target.device)
    tokens = torch.zeros(len(records), 8, dtype=torch.int32, device=target.device)
    positions = torch.full((3,), 5, device=target.device)
    for shape in (_shape_logits_triton, sampling_reference.shape_logits):
        assert torch.equal(shape(logits, tokens, records, slots, positions, edits, COLUMNS), logits)


@in_float32
def test_many_biases_and_long_sequences_take_several_chunks(target):
    vocab_size, length = 300, 2500
    logits = target.randn(1, vocab_size)
    records, slots = records_by_row(
        1, num_prompt_tokens=1200, repetition_penalty=1.5, frequency_penalty=0.25
    )
    tokens = torch.randint(0, 50, (len(records), length + 1), dtype=torch.int32)
    biases = torch.zeros(len(records), 4, 2048, dtype=torch.int32)
    listed = torch.randint(0, vocab_size, (1500,)).sort().values
    biases[slots[0], 0, :1500] = listed.int()
    biases[slots[0], 1, :1500] = torch.rand(1500).view(torch.int32)
    biases[slots[0], 2, :1500] = ALWAYS
    records[slots[0], COLUMNS["num_biases"]] = 1500
    edits, _ = edits_of({}, len(records), vocab_size)
    edits = edits._replace(biases=biases)
    positions = torch.tensor([length])
    given = [x.to(target.device) for x in (tokens, records, slots, positions)]
    edits = type(edits)(*(table.to(target.device) for table in edits))

    shaped = _shape_logits_triton(logits, *given, edits, COLUMNS)

    expected = sampling_reference.shape_logits(logits, *given, edits, COLUMNS)
    torch.testing.assert_close(shaped, expected, rtol=1e-5, atol=1e-5)


@in_float32
def test_a_forbidden_sequence_must_have_been_generated_not_prompted(target):
    """The sequence 1, 2, 3: its last token is forbidden after 1, 2 in the output alone."""
    vocab_size = 5
    logits = torch.zeros(3, vocab_size, device=target.device)
    # Prompts of two, one and no tokens, all followed by the rest of 1, 2.
    records, slots = records_by_row(3, num_prompt_tokens=torch.tensor([2, 1, 0]), num_biases=1)
    tokens = torch.tensor([1, 2, 0], dtype=torch.int32).expand(len(records), 3).contiguous()
    by_slot = {int(slot): ([(3, -torch.inf, ALWAYS, (1, 2))], None) for slot in slots}
    edits, _ = edits_of(by_slot, len(records), vocab_size, target.device)
    positions = torch.full((3,), 2)
    given = [x.to(target.device) for x in (tokens, records, slots, positions)]
    for shape in (_shape_logits_triton, sampling_reference.shape_logits):
        shaped = shape(logits, *given, edits, COLUMNS)
        assert shaped.isinf().tolist() == [[False] * 5, [False] * 5, [False] * 3 + [True, False]]


def test_too_few_words_of_allowed_tokens_are_refused():
    records, slots = records_by_row(1)
    edits, _ = edits_of({}, len(records), 64)
    tokens = torch.zeros(len(records), 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="2 words"):
        shape_logits(
            torch.zeros(1, 65), tokens, records, slots, torch.ones(1).long(), edits, COLUMNS
        )
