"""Numbers of messages as people write them."""

import struct

_FLOAT32 = struct.Struct("<f")
_MAX_DIGITS = 9
"""Digits that tell any two numbers of 32 bits apart."""


def shown_number(value: float) -> str:
    """Returns a number as its author most likely wrote it.

    A field of 32 bits holds 0.8999999761581421 where 0.9 was written: the shortest text is chosen
    that stands for the same 32 bits. Any other number is written in full.
    """
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "NaN"
    for num_digits in range(1, _MAX_DIGITS + 1):
        rounded = float(f"{value:.{num_digits}g}")
        if _as_float32(rounded) == value:
            return f"{rounded:.{_MAX_DIGITS}g}"
    return repr(value)


def _as_float32(value: float) -> float | None:
    try:
        [nearest] = _FLOAT32.unpack(_FLOAT32.pack(value))
    except OverflowError:
        return None
    return float(nearest)
