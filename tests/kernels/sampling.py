"""Sampling parameters by row, as the records that `sample` reads."""

import torch

COLUMNS = {"seed": 2, "temperature": 0}


def records_of(temperatures, seeds):
    """Returns records of more slots than rows, in another order, and the slot of each row."""
    num_rows = len(seeds)
    slots = (torch.arange(num_rows, device=seeds.device) * 2 + 1).flip(0)
    records = torch.full((2 * num_rows + 1, 4), -1, device=seeds.device)
    records[slots, COLUMNS["temperature"]] = temperatures.float().view(torch.int32).long()
    records[slots, COLUMNS["seed"]] = seeds
    return records, slots


def by_row(draw):
    """Returns `sample` or a function like it that takes each row's temperature and seed."""

    def draw_by_row(logits, temperatures, seeds, positions):
        return draw(logits, *records_of(temperatures, seeds), positions, COLUMNS)

    return draw_by_row
