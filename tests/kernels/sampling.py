"""Sampling parameters by row, as the records that the sampler's kernels read."""

import torch

from kernels.shape_logits import LogitEdits

COLUMNS = {
    name: index
    for index, name in enumerate(
        [
            "temperature",
            "top_p",
            "seed",
            "top_k",
            "min_p",
            "sample_index",
            "num_prompt_tokens",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "num_biases",
            "is_restricted",
        ]
    )
}
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
FLOATS = {"min_p", "frequency_penalty", "presence_penalty", *NEUTRAL}
ALWAYS = 2**31 - 1


def records_by_row(num_rows, device="cpu", **values):
    """Returns records of more slots than rows, in another order, and the slot of each row.

    A value is a number for all rows or one for each.
    """
    slots = (torch.arange(num_rows) * 2 + 1).flip(0)
    records = torch.full((2 * num_rows + 1, len(COLUMNS) + 1), -1)
    for name, column in COLUMNS.items():
        given = torch.as_tensor(values.get(name, NEUTRAL.get(name, 0))).expand(num_rows)
        if name in FLOATS:
            given = given.float().contiguous().view(torch.int32)
        records[slots, column] = given.long()
    return records.to(device), slots.to(device)


def records_of(temperatures, seeds):
    """Returns records with these values, and the slot of each row."""
    return records_by_row(
        len(seeds), seeds.device, temperature=temperatures.cpu(), seed=seeds.cpu()
    )


def by_row(draw):
    """Returns `sample` or a function like it that takes each row's temperature and seed."""

    def draw_by_row(logits, temperatures, seeds, positions):
        return draw(logits, *records_of(temperatures, seeds), positions, COLUMNS)

    return draw_by_row


def edits_of(by_slot, num_slots, vocab_size, device="cpu"):
    """Returns the lists of some slots and how many biases each has.

    Args:
        by_slot: Per slot, entries (token, bias, end, forbidden tokens before it) and allowed
            tokens or None.
        num_slots: Slots.
        vocab_size: Tokens.
        device: Where the tensors are.
    """
    words = -(-vocab_size // 32)
    biases = torch.full((num_slots, 4, 40), 7, dtype=torch.int32)
    forbidden = torch.full((num_slots, 50), 3, dtype=torch.int32)
    allowed = torch.zeros(num_slots, words, dtype=torch.int32)
    counts = torch.zeros(num_slots, dtype=torch.int64)
    for slot, (entries, allowed_ids) in by_slot.items():
        counts[slot] = len(entries)
        begin = 0
        for place, (token, bias, end, prefix) in enumerate(sorted(entries)):
            bits = torch.tensor(bias).view(torch.int32)
            row = (token, int(bits), end, begin * 256 + len(prefix))
            biases[slot, :, place] = torch.tensor(row, dtype=torch.int32)
            forbidden[slot, begin : begin + len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
            begin += len(prefix)
        if allowed_ids is not None:
            bits = torch.zeros(words * 32, dtype=torch.int64)
            bits[list(allowed_ids)] = 1
            packed = (bits.view(words, 32) << torch.arange(32)).sum(1)
            allowed[slot] = packed.int()
    tables = LogitEdits(biases=biases, forbidden=forbidden, allowed=allowed)
    return LogitEdits(*(table.to(device) for table in tables)), counts
