from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

from examples.guide.step_08_sampling import Sampling, draw

ENDS = (0, 1, 170, 171, 600, 1000)


def drawn(exercise: ModuleType, logits: Tensor, sampling: Sampling, position: int) -> int:
    parts = [
        exercise.best_of_part(logits[first:end].clone(), first, sampling, position)
        for first, end in pairwise(ENDS)
    ]
    token: int = exercise.winner(parts)
    assert exercise.winner(parts[::-1]) == token
    return token


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_draws_what_is_drawn_from_the_whole(exercise: ModuleType, temperature: float) -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for position in range(40):
        sampling = Sampling(temperature, seed=position % 3)
        expected = draw(logits, sampling, position)
        assert drawn(exercise, logits, sampling, position) == expected


def test_of_equal_logits_the_first_token_wins(exercise: ModuleType) -> None:
    logits = torch.zeros(1000)
    logits[[300, 350, 900]] = 5.0
    assert drawn(exercise, logits, Sampling(temperature=0), 7) == 300
