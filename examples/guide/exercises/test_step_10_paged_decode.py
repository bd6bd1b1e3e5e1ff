from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]


def part_of(scores: Tensor, values: Tensor) -> Part:
    """Returns attention by its definition, and the logarithm of the weight."""
    if not scores.shape[-1]:
        return scores.new_zeros(*scores.shape[:-1], values.shape[-1]), scores.sum(-1) - torch.inf
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def assert_equal(result: Part, expected: Part) -> None:
    for found, right in zip(result, expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [0.0, 3000.0, -3000.0])
@pytest.mark.parametrize("ends", [(0, 4, 9), (0, 1, 2), (0, 0, 5), (0, 5, 5), (0, 0, 0)])
def test_two_parts_give_what_all_keys_give(
    exercise: ModuleType, shift: float, ends: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(3, 2, ends[-1], generator=generator) + shift
    values = torch.randn(3, ends[-1], 8, generator=generator)
    first, second = (
        part_of(scores[..., start:end], values[:, start:end]) for start, end in pairwise(ends)
    )
    assert_equal(exercise.merge(first, second), part_of(scores, values))


def test_merging_goes_on(exercise: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    scores, values = (
        torch.randn(1, 12, generator=generator),
        torch.randn(12, 4, generator=generator),
    )
    parts = [part_of(scores[:, i : i + 3], values[i : i + 3]) for i in range(0, 12, 3)]
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = exercise.merge(one_by_one, part)
    in_pairs = exercise.merge(exercise.merge(*parts[:2]), exercise.merge(*parts[2:]))
    assert_equal(one_by_one, part_of(scores, values))
    assert_equal(in_pairs, part_of(scores, values))
