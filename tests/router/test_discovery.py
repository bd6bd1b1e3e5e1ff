import re

import pytest

from router.discovery import parse_addresses


def test_addresses_are_read_in_order():
    assert parse_addresses("a:1,b:2, [::1]:3 ") == ("a:1", "b:2", "[::1]:3")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("b:2,a:1, a:1", 'lists "a:1" twice'),
        ("a", 'has "a", which is not "host:port"'),
        (":1", 'has ":1", which is not "host:port"'),
        ("::1:80", 'has "::1:80", which is not "host:port"'),
        ("http://a:1", 'has "http://a:1", which is not "host:port"'),
        ("a:0", 'has "a:0", whose port is not from 1 to 65535'),
        ("a:65536", 'has "a:65536", whose port is not from 1 to 65535'),
        ("a:x", 'has "a:x", whose port is not from 1 to 65535'),
        ("a:1,,b:2", 'has "", which is not "host:port"'),
        ("", 'has "", which is not "host:port"'),
    ],
)
def test_bad_address_is_refused_by_name(text, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        parse_addresses(text)
