import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.wire.number import shown_number


def float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


@pytest.mark.parametrize(
    "written", ["0.9", "2.1", "-0.1", "1e-05", "16777216", "3.14159", "100.5", "1000000", "0"]
)
def test_number_of_32_bits_is_shown_as_it_was_written(written):
    assert shown_number(float32(float(written))) == written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.1, "2.1"),
        (2.0000000001, "2.0000000001"),
        (1e300, "1e+300"),
        (3, "3"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "NaN"),
        (-0.0, "-0"),
    ],
)
def test_other_numbers_are_shown_in_full(value, text):
    assert shown_number(value) == text


@given(st.floats(width=32, allow_nan=False))
def test_text_stands_for_the_same_32_bits(value):
    text = shown_number(value)

    assert float32(float(text)) == value
    assert len(text.lstrip("-").replace(".", "").partition("e")[0].strip("0")) <= 9


@given(st.floats(allow_nan=False))
def test_text_of_any_number_stands_for_it(value):
    read = float(shown_number(value))

    assert read == value or float32(read) == value
