from itertools import combinations
from types import ModuleType

import pytest


def keeps_padding_small(sizes: tuple[int, ...], most_rows: int, num_parts: int) -> bool:
    for num_rows in range(1, most_rows + 1):
        size = min((size for size in sizes if size >= num_rows), default=None)
        if size is None or (size - num_rows) * num_parts > size:
            return False
    return True


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 8])
def test_no_fewer_sizes_would_do(exercise: ModuleType, num_parts: int) -> None:
    for most_rows in range(1, 13):
        sizes = exercise.fewest_sizes(most_rows, num_parts)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most_rows
        assert keeps_padding_small(tuple(sizes), most_rows, num_parts)
        for fewer in combinations(range(1, most_rows + 1), len(sizes) - 1):
            assert not keeps_padding_small(fewer, most_rows, num_parts)


def test_many_rows_need_few_sizes(exercise: ModuleType) -> None:
    assert len(exercise.fewest_sizes(256, 16)) == 52
    assert len(exercise.fewest_sizes(256, 4)) == 16
    assert keeps_padding_small(tuple(exercise.fewest_sizes(256, 16)), 256, 16)
