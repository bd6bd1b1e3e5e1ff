from types import ModuleType

import pytest
import torch


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_the_best_token_is_that_of_all_logits(exercise: ModuleType, num_ranks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        # All are negative, and some are equal.
        logits = -torch.randint(1, 30, (64,), generator=generator).float()
        parts = logits.chunk(num_ranks)
        bests = [exercise.best_of_part(part, rank * len(part)) for rank, part in enumerate(parts)]

        assert exercise.best_of_all(bests) == int(logits.argmax())
        assert exercise.best_of_all(bests[::-1]) == int(logits.argmax())


def test_a_rank_tells_two_numbers(exercise: ModuleType) -> None:
    best = exercise.best_of_part(torch.tensor([0.5, 2.25, -1.0, 2.25]), 100)

    assert best.tolist() == [2.25, 101]


def test_large_token_ids_are_exact(exercise: ModuleType) -> None:
    best = exercise.best_of_part(torch.tensor([0.0, 1.0]), 2**31 - 2)

    assert exercise.best_of_all([best]) == 2**31 - 1
