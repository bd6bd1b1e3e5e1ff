"""The keyring knows clients by their keys, and follows its file."""

import asyncio
import logging
import os

import pytest

from router.access.keyring import Keyring
from router.errors import PermissionDenied, Unauthenticated, UnknownModel
from tests.router.access.key_files import KEY, OTHER, entry, write


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "keys.yaml", entry(models="[small]"), entry(OTHER, "b"))


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_key_is_known_by_each_header(path, scheme):
    keyring = Keyring(path)

    assert keyring.of_metadata([("x", "y"), ("authorization", scheme + KEY)]).key.name == "a"
    assert keyring.of_headers([(b"authorization", (scheme + KEY).encode())]).key.name == "a"
    assert keyring.of_headers([(b"x", b"y"), (b"x-api-key", OTHER.encode())]).key.name == "b"


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {'é' * 999}"]
)
def test_wrong_key_is_refused_and_not_repeated(path, value):
    keyring = Keyring(path)
    for ask in (
        lambda: keyring.of_metadata([("authorization", value)]),
        lambda: keyring.of_headers([(b"authorization", value.encode("latin-1"))]),
    ):
        with pytest.raises(Unauthenticated) as caught:
            ask()
        assert "kkk" not in str(caught.value)
    for nothing in (keyring.of_metadata, keyring.of_headers):
        with pytest.raises(Unauthenticated, match="an API key is needed"):
            nothing([])


def test_key_says_what_may_be_asked_for(path):
    a, b = Keyring(path).callers
    assert (a.may_use("small"), a.may_use("other"), b.may_use("other")) == (True, False, True)
    with pytest.raises(UnknownModel, match='"other" is not served, or not to the API key "a"'):
        a.check_model("other")
    a.check_priority(0)
    with pytest.raises(PermissionDenied, match="priority is 1, over max-priority 0 of API key"):
        a.check_priority(1)


async def test_changed_file_counts_from_the_next_look_on(path):
    keyring = Keyring(path)
    a, b = keyring.callers
    write(path, entry(max_priority=7), entry("third", "c"))

    await keyring.refresh()

    assert [caller.key.name for caller in keyring.callers] == ["a", "c"]
    assert keyring.of_key(KEY) is a
    a.check_priority(7)
    assert a.may_use("other")
    with pytest.raises(Unauthenticated):
        keyring.of_key(OTHER)
    with pytest.raises(Unauthenticated, match='"b" has been revoked'):
        async with b.until_revoked():
            pass


async def test_bad_file_keeps_the_keys_and_is_told_once(path, caplog):
    caplog.set_level(logging.INFO)
    keyring = Keyring(path)
    path.write_text(f"keys: {KEY}")

    await keyring.refresh()
    await keyring.refresh()

    assert keyring.of_key(KEY).key.name == "a"
    assert keyring.num_failures == 2
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "the old ones stay" in record.getMessage()
    path.unlink()
    await keyring.refresh()
    assert "cannot be read" in caplog.records[-1].getMessage()
    write(path, entry(name="new"))
    await keyring.refresh()
    assert keyring.of_key(KEY).key.name == "new"
    assert KEY not in caplog.text


@pytest.mark.parametrize("kind", ["folder", "pipe", "escape", "large"])
async def test_router_lives_on_whatever_takes_the_place_of_the_file(path, kind, caplog):
    caplog.set_level(logging.INFO)
    keyring = Keyring(path)
    good = path.read_bytes()
    path.unlink()
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "escape": lambda: path.write_text('keys: "\\U99999999"'),
        "large": lambda: path.write_bytes(b"#" * 10_000_000),
    }[kind]()

    await asyncio.wait_for(keyring.refresh(), 10)

    assert keyring.of_key(KEY).key.name == "a"
    assert keyring.num_failures == 1
    assert "API keys not read, the old ones stay" in caplog.text
    path.rename(path.with_name("away"))
    path.write_bytes(good)
    for _ in range(2):
        await keyring.refresh()
    assert caplog.messages[1:] == [f"API keys read file={path} num_keys=2"]


async def test_file_is_looked_at_again_and_again(path):
    looks, looked = asyncio.Queue(), asyncio.Queue()

    async def sleep(seconds):
        looked.put_nowait(seconds)
        await looks.get()

    keyring = Keyring(path, sleep=sleep)
    task = asyncio.create_task(keyring.run())
    for entries in ((entry(),), (), (entry(), entry(OTHER, "b"))):
        assert await asyncio.wait_for(looked.get(), 10) == 1.0
        write(path, *entries)
        looks.put_nowait(None)
        await asyncio.wait_for(looked.get(), 10)
        looked.put_nowait(1.0)
        assert len(keyring.callers) == len(entries)
    task.cancel()


async def test_revoked_key_ends_what_is_under_way(path):
    keyring = Keyring(path)
    a, b = keyring.callers

    async def wait(caller):
        async with caller.until_revoked():
            await asyncio.Event().wait()

    first, second, other = [asyncio.create_task(wait(caller)) for caller in (a, a, b)]
    await asyncio.sleep(0)
    write(path, entry(OTHER, "b"))
    await keyring.refresh()

    for task in (first, second):
        with pytest.raises(Unauthenticated, match='"a" has been revoked'):
            await asyncio.wait_for(task, 10)
    assert not other.done()
    other.cancel()


async def test_timeout_of_its_own_is_no_revocation(path):
    [a, _] = Keyring(path).callers
    with pytest.raises(TimeoutError):
        async with a.until_revoked():
            raise TimeoutError


def test_salts_differ_by_tenant_and_by_what_is_asked(tmp_path):
    keys = [
        entry(KEY, "a"),
        entry(OTHER, "b"),
        entry("c", "c", tenant="t"),
        entry("d", "d", tenant="t"),
    ]
    a, b, c, d = Keyring(write(tmp_path / "keys", *keys)).callers

    salts = {caller.cache_salt(asked) for caller in (a, b, c) for asked in ("", "x", "y")}
    assert len(salts) == 9
    assert all(len(salt) == 64 for salt in salts)
    for asked in ("", "x", a.cache_salt("")):
        assert c.cache_salt(asked) == d.cache_salt(asked)
        assert a.cache_salt(asked) != b.cache_salt(asked)
    again = Keyring(write(tmp_path / "keys", *keys, secret="6" * 64)).callers
    assert {caller.cache_salt("") for caller in again}.isdisjoint(salts)
