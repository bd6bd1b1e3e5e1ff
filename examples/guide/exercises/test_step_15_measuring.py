from types import ModuleType

import pytest

WIN, LOSS, TIE = (2.0, 1.0), (1.0, 2.0), (1.0, 1.0)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([WIN] * 10, 2 / 1024),
        ([LOSS] * 10, 2 / 1024),
        ([WIN] * 9 + [LOSS], 22 / 1024),
        ([WIN] + [LOSS] * 9, 22 / 1024),
        ([WIN] * 8 + [LOSS] * 2, 112 / 1024),
        ([WIN] * 3 + [LOSS] * 2, 1.0),
        ([WIN], 1.0),
    ],
)
def test_counts_the_ways_to_be_so_uneven(
    exercise: ModuleType, pairs: list[tuple[float, float]], expected: float
) -> None:
    assert exercise.chance(pairs) == pytest.approx(expected)


def test_an_even_split_and_no_pair_at_all_say_nothing(exercise: ModuleType) -> None:
    assert exercise.chance([WIN, LOSS] * 4) == 1.0
    assert exercise.chance([]) == 1.0


def test_equal_times_are_left_out(exercise: ModuleType) -> None:
    assert exercise.chance([WIN] * 9 + [LOSS] + [TIE] * 30) == pytest.approx(22 / 1024)


def test_how_much_somebody_won_by_does_not_matter(exercise: ModuleType) -> None:
    assert exercise.chance([(1.01, 1.0)] * 9 + [(1.0, 1000.0)]) == pytest.approx(22 / 1024)
