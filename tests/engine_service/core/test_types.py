"""The types of the core."""

from array import array

import numpy as np
import pytest

from engine_service.core.types import int32_array

LENGTHS = [0, 1, 63, 64, 2000]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", [list, tuple, lambda values: array("i", values)])
def test_array_has_the_values_of_any_sequence(kind, length):
    values = [(-1) ** place * place * 1_000_003 for place in range(length)]

    made = int32_array(kind(values))

    assert (made.typecode, made.tolist()) == ("i", values)


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (2**31, OverflowError),
        (-(2**31) - 1, OverflowError),
        (1.0, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ],
)
def test_value_that_is_no_32_bit_integer_is_refused(length, value, error):
    with pytest.raises(error):
        int32_array([*range(length - 1), value])


def test_limits_and_integers_of_other_types_are_taken():
    values = [-(2**31), 2**31 - 1, True, np.int64(7)] * 20

    assert int32_array(values).tolist() == [-(2**31), 2**31 - 1, 1, 7] * 20
