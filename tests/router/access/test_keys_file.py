"""The file of API keys says what is wrong with it, and never a key."""

import pytest

from router.access.keys_file import MAX_KEYS, load_keys
from servicekit.errors import StartupError
from tests.router.access.key_files import KEY, OTHER, digest, entry, write

SECRET = f"cache-secret: {'5' * 64!r}\n"


def test_file_has_keys_by_their_digests(tmp_path):
    full = entry(KEY, models="[m/x, y]", max_priority=3, tenant="us")
    file = load_keys(write(tmp_path / "keys", full, entry(OTHER, "b", models="z")))

    first, second = file.keys[bytes.fromhex(digest(KEY))], file.keys[bytes.fromhex(digest(OTHER))]
    assert (first.name, first.models, first.max_priority) == ("a", ("m/x", "y"), 3)
    assert (first.tenant, file.cache_secret) == ("us", b"\x55" * 32)
    assert (second.name, second.models, second.max_priority) == ("b", ("z",), 0)
    assert load_keys(write(tmp_path / "keys")).keys == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have cache-secret and a list keys"),
        ("- a", "must have cache-secret and a list keys"),
        ("a: {", "is no YAML"),
        (f"keys: []\n{SECRET}more: 1", ":3 more is neither cache-secret nor keys"),
        ("keys: []\nkeys: []", ":2 keys is given twice"),
        ("keys: []", "cache-secret of"),
        (f"keys: []\ncache-secret: {KEY}", "must be 64 hexadecimal digits"),
        (SECRET, "must be a list"),
        (f"{SECRET}keys: {{}}", "must be a list"),
        (f"{SECRET}keys: [x]", ":2 is no setting"),
        (f"{SECRET}keys: [{{name: a}}]", "has no sha256"),
        (f"{SECRET}keys: [{{name: a, key: {KEY}}}]", "key is unknown"),
        (f"{SECRET}keys: [{{name: a, sha256: {KEY}}}]", "sha256 must be 64 hexadecimal digits"),
        (f"{SECRET}keys:\n{entry(name='-a')}", "name is '-a', must be 1 to 64 letters"),
        (f"{SECRET}keys:\n{entry(max_priority='x')}", "max-priority is 'x', must be an integer"),
        (f"{SECRET}keys:\n{entry(model='x')}", "model is unknown; did you mean models?"),
        (f"{SECRET}keys:\n{entry(models='[]')}", "models has '', must have names of"),
        (f"{SECRET}keys:\n{entry(models='[a, b c]')}", "has 'b c', must have names of"),
        (f"{SECRET}keys:\n{entry()}{entry(OTHER)}", "has the name a of a key before"),
        (f"{SECRET}keys:\n{entry()}{entry(name='b')}", "has the sha256 of a key before"),
        (SECRET + "keys:\n" + "- {}\n" * (MAX_KEYS + 1), "has 1025 keys, over 1024"),
        ('keys: "\\U99999999"', "is no YAML: it is malformed"),
        (" " * 1_048_577, "has more than 1048576 bytes"),
    ],
)
def test_wrong_file_is_refused_in_one_line_without_its_keys(tmp_path, text, message):
    file = tmp_path / "keys.yaml"
    file.write_text(text)

    with pytest.raises(StartupError) as caught:
        load_keys(file)

    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY[4:] not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(StartupError, match="cannot be read: No such file"):
        load_keys(tmp_path / "none")
