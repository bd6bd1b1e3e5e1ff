import asyncio
import hashlib
import re

import pytest

from protos.pagestream.engine.v1.engine_pb2 import GetTokenizerResponse, TokenizerFile
from protos.wire.status import Reason
from protos.wire.tokenizer_digest import tokenizer_digest
from router.engines import tokenizer_transfer
from router.engines.tokenizer_transfer import MAX_BYTES, MAX_FILES, read_files
from router.errors import EngineError

FILES = {"a.json": b"abc" * 1000, "b.jinja": b""}


def digest_of(files):
    return tokenizer_digest({n: hashlib.sha256(content).digest() for n, content in files.items()})


def header(name, content=b"", **changes):
    fields = {
        "name": name,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return GetTokenizerResponse(file=TokenizerFile(**(fields | changes)))


def chunk(content):
    return GetTokenizerResponse(chunk=content)


def messages_of(files):
    for name, content in files.items():
        yield header(name, content)
        yield from (chunk(content[n : n + 100]) for n in range(0, len(content), 100))


async def read(messages):
    num_taken = 0

    async def call():
        nonlocal num_taken
        for message in messages:
            num_taken += 1
            yield message

    try:
        files = await read_files("e:1", call(), expected_sha256=digest_of(FILES), silence=10.0)
        return files, num_taken
    except EngineError as error:
        return error, num_taken


async def test_files_arrive_whole():
    files, _ = await read(messages_of(FILES))

    assert files == FILES


async def test_messages_of_no_known_kind_are_passed_over():
    files, _ = await read([GetTokenizerResponse(), *messages_of(FILES), GetTokenizerResponse()])

    assert files == FILES


@pytest.mark.parametrize(
    "files",
    [{**FILES, "a.json": b"abd" * 1000}, {"a.json": FILES["a.json"]}, {**FILES, "c": b""}, {}],
)
async def test_files_that_are_not_those_announced_are_refused(files):
    error, _ = await read(messages_of(files))

    assert error.status.reason == Reason.INTERNAL
    assert re.search(r"engine e:1: all have the digest .* announced was", str(error))


def many_headers():
    for number in range(10_000):
        yield header(f"{number}.json")


def endless(message):
    yield header("a.json", b"abc")
    for _ in range(10_000):
        yield message


@pytest.mark.parametrize(
    ("messages", "fault", "most_taken"),
    [
        (many_headers(), f"are more than {MAX_FILES}", MAX_FILES + 1),
        (endless(chunk(b"")), "empty messages", 100),
        (endless(GetTokenizerResponse()), "empty messages", 100),
        (endless(chunk(b"ab")), "announced size", 3),
        ([chunk(b"abc")], "started without a header", 1),
        ([header("a"), header("a")], "was sent twice", 2),
        ([header("a", size_bytes=MAX_BYTES + 1)], "announced with", 1),
        ([header("a", size_bytes=-1)], "announced with", 1),
        ([header("a", size_bytes=2**63 - 1)], "announced with", 1),
        ([header("n" * 256)], "over 255 bytes", 1),
        ([header("ü" * 200)], "over 255 bytes", 1),
        ([header("a\nb")], "not printable", 1),
        ([header("a\0b")], "not printable", 1),
        ([header("")], "not a plain file name", 1),
        ([header("..")], "not a plain file name", 1),
        ([header("a\\b")], "not a plain file name", 1),
        ([header("a", b"abc"), header("b")], "announced size", 2),
        ([header("a", b"abc", sha256="0" * 64), chunk(b"abc")], "announced size", 2),
        ([None], "could not be parsed", 1),
    ],
)
async def test_what_breaks_a_bound_is_given_up_at_once(messages, fault, most_taken):
    error, num_taken = await read(messages)

    assert fault in str(error)
    assert len(str(error)) < 1000
    assert num_taken <= most_taken


async def test_sizes_are_summed_before_any_content_is_taken(monkeypatch):
    monkeypatch.setattr(tokenizer_transfer, "MAX_BYTES", 10)

    error, num_taken = await read([header("a", b"123456"), chunk(b"123456"), header("b", b"12345")])

    assert "'b' is announced with 5 bytes; all files may have 10" in str(error)
    assert num_taken == 3


async def test_transfer_that_stops_is_given_up():
    async def call():
        yield header("a", b"abc")
        await asyncio.Event().wait()

    with pytest.raises(EngineError, match=r"stopped coming for 0\.01 s") as raised:
        await read_files("e:1", call(), expected_sha256="", silence=0.01)

    assert raised.value.status.reason == Reason.ENGINE_FAILED
