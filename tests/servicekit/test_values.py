import re
from pathlib import Path

import pytest

from servicekit.values import (
    Flags,
    Hosts,
    Integers,
    Names,
    Numbers,
    OneOf,
    Paths,
    Texts,
    byte_sizes,
    counts,
    seconds,
)

DIGITS = Texts(r"\d+", "digits")


@pytest.mark.parametrize(
    ("values", "text", "value"),
    [
        (Integers(0, 9), "9", 9),
        (Numbers(0, 1), "0.5", 0.5),
        (seconds(0, 1), "1", 1.0),
        (seconds(0, 1), "500ms", 0.5),
        (seconds(0, 1), "100us", 0.0001),
        (seconds(0, 1e6), "1.5h", 5400.0),
        (seconds(0, 1e6), "2m", 120.0),
        (seconds(0, 1e6), "1d", 86400.0),
        (seconds(0, 1e6), "30s", 30.0),
        (counts(0, 10**9), "32k", 32_000),
        (counts(0, 10**9), "32Ki", 32_768),
        (counts(0, 10**9), "1.5M", 1_500_000),
        (counts(0, 10**9), "0.5Mi", 524_288),
        (counts(0, 10**9), "32000", 32_000),
        (byte_sizes(0, 1 << 50), "8GiB", 8 << 30),
        (byte_sizes(0, 1 << 50), "8Gi", 8 << 30),
        (byte_sizes(0, 1 << 50), "8GB", 8 * 10**9),
        (byte_sizes(0, 1 << 50), "1.1TB", 11 * 10**11),
        (byte_sizes(0, 1 << 50), "512B", 512),
        # Exact, where a float is not.
        (byte_sizes(0, 1 << 62), "9007199254740.993k", 9_007_199_254_740_993),
        (OneOf((16, 32)), "32", 32),
        (OneOf(("a", "b")), "b", "b"),
        (DIGITS, "007", "007"),
        (Hosts(), "::1", "::1"),
        (Names(), "acme/demo", "acme/demo"),
        (Names(), "", ""),
        (Paths(), "a/b", Path("a/b")),
        (Flags(), "TRUE", True),
        (Flags(), "0", False),
    ],
)
def test_text_is_read_as_a_value_of_its_kind(values, text, value):
    read = values.parse(text)
    values.check(read)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        (Integers(0, 9), "10", "is 10, must be an integer from 0 to 9"),
        (Integers(0, 9), "-1", "is -1, must be an integer from 0 to 9"),
        (Integers(0, 9), "1.5", "is '1.5', must be an integer from 0 to 9"),
        (Numbers(0, 1), "inf", "is inf, must be a number from 0 to 1"),
        (Numbers(0, 1), "nan", "is nan, must be a number from 0 to 1"),
        (seconds(0.1, 1), "0", "is 0.0, must be a number of seconds from 0.1 to 1"),
        (Integers(0, 9), "1k", "is '1k', must be an integer from 0 to 9"),
        (counts(0, 9), "1k", "is 1000, must be an integer from 0 to 9"),
        (counts(0, 9), "1.0001k", "is '1.0001k', must be an integer from 0 to 9"),
        (
            counts(0, 9),
            "32K",
            "is '32K', must be an integer from 0 to 9; the units are k, M, G, T (powers of 1000) "
            "and Ki, Mi, Gi, Ti (powers of 1024)",
        ),
        (
            byte_sizes(0, 9),
            "8gb",
            "is '8gb', must be an integer from 0 to 9; the units are B, kB, MB, GB, TB (powers of "
            "1000) and KiB, MiB, GiB, TiB (powers of 1024)",
        ),
        (
            seconds(0, 1),
            "5min",
            "is '5min', must be a number of seconds from 0 to 1; the units are us, ms, s, m, h "
            "and d",
        ),
        (seconds(0, 1), "-5ms", "is '-5ms', must be a number of seconds from 0 to 1"),
        (OneOf(("prefix",)), "prefx", "is 'prefx', must be one of prefix; did you mean prefix?"),
        (OneOf((16, 32)), "16.0", "is '16.0', must be one of 16, 32"),
        (DIGITS, "7\n", r"is '7\n', must be digits"),
        (Hosts(), "a b", "is 'a b', must be a name or an IP address, without brackets"),
        (Names(), "a b", "is 'a b', must be 1 to 256 printable characters without spaces"),
        (Paths(), "", "is '', must be a path"),
        (Paths(), "a\0b", r"is 'a\x00b', must be a path, which has no character 0"),
        (Flags(), "on", "is 'on', must be true or false"),
    ],
)
def test_text_that_is_no_value_is_refused_with_the_bounds(values, text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        values.check(values.parse(text))


@pytest.mark.parametrize(
    ("values", "value"),
    [
        (Integers(0, 9), True),
        (Integers(0, 9), 1.0),
        (Integers(0, 9), None),
        (Numbers(0, 1), False),
        (Numbers(0, 1), "0.5"),
        (OneOf((16, 32)), 16.0),
        (OneOf((16, 32)), [16]),
        (DIGITS, 7),
        (Hosts(), None),
        (Names(), b"a"),
        (Paths(), "a"),
        (Flags(), 1),
    ],
)
def test_value_of_another_type_is_refused(values, value):
    with pytest.raises(ValueError, match=r"^is .*, must be "):
        values.check(value)


@pytest.mark.parametrize("values", [Integers(0, 9), Numbers(0, 1), DIGITS, Flags()])
def test_huge_text_is_cut(values):
    with pytest.raises(ValueError, match=r"^is 'xxx.*…, must be") as caught:
        values.check(values.parse("x" * 1_000_000))
    assert len(str(caught.value)) < 200
