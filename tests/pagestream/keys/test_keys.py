"""`pagestream keys` changes the file that routers read."""

import re
import stat

import pytest

from pagestream.keys.command import main
from router.access.keyring import Keyring
from router.access.keys_file import MAX_KEYS, load_keys
from servicekit.log import flush_log
from tests.router.access.key_files import entry, write


@pytest.fixture
def run(tmp_path, capfd):
    def run(*arguments):
        code = main([*arguments, "--file", str(tmp_path / "keys.yaml")])
        flush_log()
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_created_key_is_shown_once_and_known_to_a_router(run, tmp_path):
    path = tmp_path / "keys.yaml"
    options = ("--models", "m/x,y", "--tenant", "us", "--max-priority", "3")
    code, key, note = run("create", "on", *options)
    assert (code, note) == (0, "This key is not shown again.\n")
    assert re.fullmatch(r"pgs_[A-Za-z0-9_-]{43}\n", key)
    _, other, _ = run("create", "b")

    keyring = Keyring(path)
    found = keyring.of_key(key.strip()).key
    assert (found.name, found.models, found.tenant) == ("on", ("m/x", "y"), "us")
    assert found.max_priority == 3
    assert keyring.of_key(other.strip()).key.models == ()
    assert key.strip() not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_router_that_could_read_the_file_still_can(run, tmp_path):
    run("create", "a")
    run("create", "b")
    path = tmp_path / "keys.yaml"
    path.chmod(0o640)

    assert run("revoke", "a")[0] == 0

    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [key.name for key in load_keys(path).keys.values()] == ["b"]


def test_keys_are_listed_without_what_could_be_used(run, tmp_path):
    _, key, _ = run("create", "a", "--models", "x")
    code, table, _ = run("list")

    head, row = table.splitlines()
    assert code == 0
    assert head.split()[:5] == ["name", "sha256", "models", "max-priority", "tenant"]
    assert row.split()[0::2][:2] == ["a", "x"]
    assert key.strip() not in table


def test_revoked_key_is_gone_and_the_secret_stays(run, tmp_path):
    for name in ("a", "b"):
        run("create", name)
    before = load_keys(tmp_path / "keys.yaml")

    assert run("revoke", "a") == (0, "", "")

    after = load_keys(tmp_path / "keys.yaml")
    assert after.cache_secret == before.cache_secret
    assert [key.name for key in after.keys.values()] == ["b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "a"), "has a key a; choose another name"),
        (("create",), "create needs the NAME of a key"),
        (("create", "a b"), "NAME is 'a b', must be 1 to 64 letters"),
        (("create", "c", "--models", ""), "--models has ''"),
        (("list", "a"), "list takes no name"),
        (("revoke",), "revoke needs the NAME"),
        (("revoke", "a", "--tenant", "x"), "--tenant goes with create, not revoke"),
        (("revoke", "team-b"), "has no key team-b; did you mean team-a?"),
        (("remove", "a"), "ACTION is 'remove', must be one of create, list, revoke"),
    ],
)
def test_mistake_is_one_line_and_changes_nothing(run, tmp_path, arguments, message):
    path = write(tmp_path / "keys.yaml", entry(name="a"), entry("other", "team-a"))
    before = path.read_bytes()

    code, out, error = run(*arguments)

    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert path.read_bytes() == before


def test_file_that_cannot_be_read_or_written_is_named(run, tmp_path):
    assert "cannot be read" in run("list")[2]
    (tmp_path / "keys.yaml").mkdir()
    assert "cannot be read" in run("create", "a")[2]
    (tmp_path / "keys.yaml").rmdir()
    (tmp_path / "keys.yaml").symlink_to("keys.yaml")
    assert "Too many levels of symbolic links" in run("revoke", "a")[2]
    for command in ("create", "revoke"):
        assert main([command, "a", "--file", str(tmp_path / "none" / "keys")]) == 2


def test_file_takes_so_many_keys_and_no_more(run, tmp_path):
    write(tmp_path / "keys.yaml", *(entry(str(n), f"k{n}") for n in range(MAX_KEYS)))
    assert f"has {MAX_KEYS} keys, and takes no more" in run("create", "one")[2]
