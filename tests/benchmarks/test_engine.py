import pytest

from benchmarks.engine import _union


@pytest.mark.parametrize(
    ("ranges", "length"),
    [
        ([(0.0, 2.0)], 2.0),
        ([(5.0, 6.0), (0.0, 2.0)], 3.0),
        ([(0.0, 2.0), (2.0, 3.0)], 3.0),
        ([(0.0, 2.0), (1.0, 3.0)], 3.0),
        ([(0.0, 9.0), (1.0, 3.0), (8.0, 10.0)], 10.0),
    ],
)
def test_time_in_which_kernels_overlap_counts_once(ranges, length):
    assert _union(ranges) == length
