import asyncio
import os
import random
import re
import socket
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from router.engines.discovery import (
    EngineDns,
    EnginesFile,
    PolledDiscovery,
    ServiceName,
    StaticDiscovery,
    Unusable,
    discover,
    parse_addresses,
)

NAME = ServiceName(host="engine.test", port=9000)
NOT_FOUND = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
TRY_AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
HANGS = TimeoutError("this answer never comes")


class Pauses:
    """The waits between polls: each does what is next on a list, and the last never ends."""

    def __init__(self, *steps) -> None:
        self.seconds = []
        self.over = asyncio.Event()
        self._steps = list(steps)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if not self._steps:
            self.over.set()
            await asyncio.Event().wait()
        self._steps.pop(0)()


class FakeDns:
    """Gives one answer after another, and records who asked for what."""

    def __init__(self, *answers) -> None:
        self.asked = []
        self.num_cancelled = 0
        self._answers = list(answers)

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        answer = self._answers.pop(0)
        if answer is HANGS:
            try:
                await asyncio.Event().wait()
            finally:
                self.num_cancelled += 1
        if isinstance(answer, OSError):
            raise answer
        return answer


async def collect(discovery, pauses):
    """Returns what a discovery yields until the pauses are over."""
    found = []

    async def read():
        async with aclosing(discovery.addresses()) as sets:
            async for addresses in sets:
                found.append(addresses)  # noqa: PERF401

    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read())
        await pauses.over.wait()
        reader.cancel()
    return found


async def collect_dns(*answers):
    """Returns what is yielded for these answers, and the discovery."""
    pauses = Pauses(*[lambda: None] * (len(answers) - 1))
    source = EngineDns(NAME, FakeDns(*answers).resolve)
    discovery = PolledDiscovery(source, 5.0, sleep=pauses.sleep)
    return await collect(discovery, pauses), discovery


async def collect_file(path, *steps):
    """Returns what is yielded while these steps are taken, and the discovery."""
    pauses = Pauses(*steps)
    source = EnginesFile(path)
    discovery = PolledDiscovery(source, 1.0, source.load(), sleep=pauses.sleep)
    return await collect(discovery, pauses), discovery


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "engines.txt"
    path.write_text("a:1\nb:2\n")
    return path


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
        ("a:1/b", 'has "a:1/b", which is not "host:port"'),
        ("a b:1", 'has "a b:1", which is not "host:port"'),
        ("a:0", 'has "a:0", whose port is not from 1 to 65535'),
        ("a:65536", 'has "a:65536", whose port is not from 1 to 65535'),
        ("a:x", 'has "a:x", whose port is not from 1 to 65535'),
        ("[:1", 'has "[:1", which is not "host:port"'),
        ("[]:5", 'has "[]:5", which is not "host:port"'),
        ("[[::1]]:1", 'has "[[::1]]:1", which is not "host:port"'),
        ("a:b:1", 'has "a:b:1", which is not "host:port"'),
        ("a\nb:1", r'has "a\nb:1", which is not "host:port"'),
        ("a" * 300 + ":1", f'has "{"a" * 100}…", which is not "host:port"'),
        ("a:" + "9" * 5000, f'has "a:{"9" * 98}…", whose port is not from 1 to 65535'),
        (",".join(f"a{n}:1" for n in range(4097)), "lists more than 4096 addresses"),
        ("a:1,,b:2", 'has "", which is not "host:port"'),
        ("", 'has "", which is not "host:port"'),
    ],
)
def test_bad_address_is_refused_by_name(text, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        parse_addresses(text)


async def test_list_is_yielded_once_as_it_was_given():
    discovery = discover(engines=("b:2", "a:1"), engines_file=None, engine_dns=None, interval=5)

    async with aclosing(discovery.addresses()) as sets:
        assert await anext(sets) == ("b:2", "a:1")
        again = asyncio.ensure_future(anext(sets))
        # Whatever it would do without waiting, it does in these rounds.
        for _ in range(5):
            await asyncio.sleep(0)
        assert not again.done()
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
    assert isinstance(discovery, StaticDiscovery)


async def test_option_of_a_file_leads_to_its_addresses(file):
    discovery = discover(engines=(), engines_file=file, engine_dns=None, interval=5)
    # What is known from the start needs no file.
    file.unlink()

    async with aclosing(discovery.addresses()) as sets:
        assert await anext(sets) == ("a:1", "b:2")


async def test_option_of_a_name_leads_to_its_addresses():
    # A literal is resolved without asking anyone.
    name = ServiceName(host="127.0.0.1", port=9000)
    discovery = discover(engines=(), engines_file=None, engine_dns=name, interval=5)

    async with aclosing(discovery.addresses()) as sets:
        assert await anext(sets) == ("127.0.0.1:9000",)


async def test_ipv6_address_of_the_resolver_stands_in_brackets():
    assert await EngineDns(ServiceName(host="::1", port=9000)).read() == ("[::1]:9000",)


async def test_name_is_looked_up_with_its_port():
    dns = FakeDns(["10.0.0.1"])

    await EngineDns(NAME, dns.resolve).read()

    assert dns.asked == [("engine.test", 9000)]


async def test_a_and_aaaa_records_are_engines_each_once():
    found, _ = await collect_dns(["fd00::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"])

    assert found == [("10.0.0.1:9000", "10.0.0.2:9000", "[fd00::1]:9000")]


async def test_more_records_than_engines_can_be_are_refused():
    dns = FakeDns([f"10.0.{n // 256}.{n % 256}" for n in range(4097)])
    with pytest.raises(Unusable, match=r"^resolves to more than 4096 addresses$"):
        await EngineDns(NAME, dns.resolve).read()


async def test_records_in_another_order_are_no_change():
    found, _ = await collect_dns(["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.1"])

    assert found == [("10.0.0.1:9000", "10.0.0.2:9000")]


async def test_records_that_come_and_go_are_yielded_as_whole_sets():
    found, _ = await collect_dns(["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], ["10.0.0.2"])

    assert found == [
        ("10.0.0.1:9000",),
        ("10.0.0.1:9000", "10.0.0.2:9000"),
        ("10.0.0.2:9000",),
    ]


async def test_name_may_begin_to_resolve_after_the_start():
    found, _ = await collect_dns(NOT_FOUND, [], ["10.0.0.1"])

    assert found == [("10.0.0.1:9000",)]


async def test_name_that_stops_resolving_leaves_the_engines_known(caplog):
    caplog.set_level("INFO")

    found, discovery = await collect_dns(
        ["10.0.0.1"], [], [], TRY_AGAIN, TRY_AGAIN, ["10.0.0.1"], ["10.0.0.1"], TRY_AGAIN
    )

    assert found == [("10.0.0.1:9000",)]
    assert discovery.num_failures == 5
    kept = "engine discovery failed source=engine.test:9000 num_known=1 error="
    unresolved = f"{kept}does not resolve: Temporary failure in name resolution"
    assert [record.getMessage() for record in caplog.records] == [
        "engines changed source=engine.test:9000 engines=10.0.0.1:9000",
        f"{kept}resolves to no address",
        unresolved,
        "engine discovery recovered source=engine.test:9000",
        unresolved,
    ]


async def test_lookup_that_hangs_is_given_up_and_made_again(caplog):
    dns = FakeDns(HANGS, ["10.0.0.1"])
    pauses = Pauses(lambda: None)
    discovery = PolledDiscovery(EngineDns(NAME, dns.resolve, 0.01), 5.0, sleep=pauses.sleep)

    found = await collect(discovery, pauses)

    assert found == [("10.0.0.1:9000",)]
    assert dns.num_cancelled == 1
    assert warnings(caplog) == [
        "engine discovery failed source=engine.test:9000 num_known=0 "
        "error=does not resolve within 0.01 s"
    ]


async def test_cancelling_ends_a_lookup_at_once():
    dns = FakeDns(HANGS)
    discovery = PolledDiscovery(EngineDns(NAME, dns.resolve), 5.0)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(discovery.addresses()), 0.01)

    assert (dns.num_cancelled, discovery.num_failures) == (1, 0)


async def test_waits_between_polls_differ_around_the_interval():
    pauses = Pauses(*[lambda: None] * 99)
    source = EngineDns(NAME, FakeDns(*[["10.0.0.1"]] * 100).resolve)
    rng = random.Random(0)

    await collect(PolledDiscovery(source, 5.0, sleep=pauses.sleep, rng=rng), pauses)

    assert len(pauses.seconds) == 100
    assert all(4.0 <= seconds <= 6.0 for seconds in pauses.seconds)
    assert min(pauses.seconds) < 4.2
    assert max(pauses.seconds) > 5.8


def test_line_is_an_address_and_comments_and_blanks_are_none(tmp_path):
    path = tmp_path / "engines.txt"
    path.write_bytes(b"\xef\xbb\xbf# all\r\n\r\n b:2 # rack 1\n\t\na:1\r\n[::1]:3")

    assert EnginesFile(path).load() == ("b:2", "a:1", "[::1]:3")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a:1\nb\n", 'line 2 has "b", which is not "host:port"'),
        (b"a:1\n\nb:99999\n", 'line 3 has "b:99999", whose port is not from 1 to 65535'),
        (b"a:1,b:2\n", 'line 1 has "a:1,b:2", which is not "host:port"'),
        (b"a:1 b:2\n", 'line 1 has "a:1 b:2", which is not "host:port"'),
        (b"a:1\nb:2\na:1 # again\n", 'line 3 lists "a:1" twice'),
        (b"a:1\n\xff:2\n", "line 2 is not UTF-8"),
        (b"a:1\n[]:5\n", 'line 2 has "[]:5", which is not "host:port"'),
        (b"a\x1b[2J:1\n", r'line 1 has "a\x1b[2J:1", which is not "host:port"'),
        (b"", "lists no address"),
        (b"# none\n", "lists no address"),
        (b"#" * 1_048_577, "cannot be read: it has more than 1048576 bytes"),
    ],
)
def test_bad_file_is_refused_with_the_line_and_what_is_wrong(tmp_path, content, problem):
    path = tmp_path / "engines.txt"
    path.write_bytes(content)

    with pytest.raises(Unusable, match=f"^{re.escape(problem)}$"):
        EnginesFile(path).load()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.txt", "cannot be read: No such file or directory"),
        (".", "cannot be read: Is a directory"),
        ("bad.txt", 'line 1 has "a", which is not "host:port"'),
    ],
)
def test_bad_file_is_an_error_at_the_start(tmp_path, name, problem):
    (tmp_path / "bad.txt").write_text("a\n")
    path = tmp_path / name

    with pytest.raises(Unusable, match=f"^--engines-file {re.escape(f'{path} {problem}')}$"):
        discover(engines=(), engines_file=path, engine_dns=None, interval=5)


async def test_file_written_in_place_is_read_again(file):
    found, _ = await collect_file(
        file, lambda: file.write_text("c:3\n"), lambda: None, lambda: file.write_text("d:4\n")
    )

    assert found == [("a:1", "b:2"), ("c:3",), ("d:4",)]


async def test_change_that_leaves_time_and_size_of_the_file_is_seen(file):
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)

    def change():
        file.write_text("a:1\nb:3\n")
        os.utime(file, ns=times)

    found, _ = await collect_file(file, change)

    assert found == [("a:1", "b:2"), ("a:1", "b:3")]


async def test_file_replaced_by_renaming_is_read_again(file):
    def replace():
        other = file.with_suffix(".new")
        other.write_text("c:3\n")
        other.rename(file)

    found, _ = await collect_file(file, replace)

    assert found == [("a:1", "b:2"), ("c:3",)]


async def test_config_map_that_is_swapped_is_read_again(tmp_path):
    # As the kubelet does it: file -> ..data/file, and ..data -> a folder of the time.
    def swap(version: str, content: str):
        (tmp_path / version).mkdir()
        (tmp_path / version / "engines.txt").write_text(content)
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    swap("..1", "a:1\n")
    file = tmp_path / "engines.txt"
    file.symlink_to(Path("..data") / "engines.txt")

    found, _ = await collect_file(file, lambda: swap("..2", "a:1\nb:2\n"))

    assert found == [("a:1",), ("a:1", "b:2")]


def test_name_server_that_is_silent_keeps_no_router_from_its_exit(monkeypatch):
    is_over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: is_over.wait(60) and [])
    with pytest.raises(Unusable, match="does not resolve within"):
        asyncio.run(EngineDns(NAME, timeout=0.01).read())
    assert not is_over.is_set()
    is_over.set()


async def test_name_of_this_machine_is_looked_up():
    assert "127.0.0.1:9000" in await EngineDns(ServiceName(host="localhost", port=9000)).read()


async def test_name_that_does_not_exist_is_the_resolver_s_error():
    with pytest.raises(Unusable, match="does not resolve: "):
        await EngineDns(ServiceName(host="does-not-exist.invalid", port=9000)).read()


async def test_bad_file_leaves_the_engines_known_and_is_named_once(file, caplog):
    found, discovery = await collect_file(
        file,
        lambda: file.write_text("c:3\nd\n"),
        lambda: None,
        lambda: None,
        lambda: file.write_text("c:3\nd:x\n"),
        lambda: file.unlink(),
        lambda: file.write_text("c:3\n"),
    )

    assert found == [("a:1", "b:2"), ("c:3",)]
    assert discovery.num_failures == 5
    kept = f"engine discovery failed source={file} num_known=2 error="
    assert warnings(caplog) == [
        f'{kept}line 2 has "d", which is not "host:port"',
        f'{kept}line 2 has "d:x", whose port is not from 1 to 65535',
        f"{kept}cannot be read: No such file or directory",
    ]


async def test_file_is_followed_by_the_clock_too(file):
    source = EnginesFile(file)
    discovery = PolledDiscovery(source, 0.01, source.load())

    async with aclosing(discovery.addresses()) as sets, asyncio.timeout(10):
        assert await anext(sets) == ("a:1", "b:2")
        file.write_text("c:3\n")
        assert await anext(sets) == ("c:3",)
