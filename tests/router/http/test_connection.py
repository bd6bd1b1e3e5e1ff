"""Clients that send too much, too slowly, too often or nonsense, and those that do not read."""

import asyncio
import json
import logging
import random
from contextlib import asynccontextmanager

import pytest

from router.http import body, connection, door
from router.request.slow_readers import SlowReaders
from router.types.engine_events import Tokens
from tests.fakes.fake_fleet import FakeFleet
from tests.router.http.serving import MAX_BODY_BYTES, opening

pytestmark = pytest.mark.usefixtures("plain_api")

HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
WAIT = 10.0


def post(path, content, *headers):
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(content)}\r\n"
    return "".join((head, *(f"{header}\r\n" for header in headers), "\r\n")).encode() + content


def generate(path="/plain/stream", **fields):
    return post(path, json.dumps({"prompt": [5, 6], **fields}).encode())


class Client:
    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, content):
        """Sends, if the connection has not ended."""
        if not self.writer.is_closing():
            self.writer.write(content)

    async def status(self):
        """Reads a whole answer and returns its status; 0 if the connection ends instead."""
        async with asyncio.timeout(WAIT):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if length:
                await self.reader.readexactly(int(length))
        return int(head.split()[1])

    async def until(self, text):
        async with asyncio.timeout(WAIT):
            return await self.reader.readuntil(text)

    async def read_past(self, text):
        """As `until`, of a stream of any length."""
        last = b""
        async with asyncio.timeout(WAIT):
            while text not in last:
                last = last[-len(text) :] + await self.reader.read(1 << 16)
                assert not self.reader.at_eof()

    async def rest(self):
        """Reads until the connection ends, one way or another."""
        async with asyncio.timeout(WAIT):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


class Port:
    def __init__(self, door, pipeline, port):
        self.door = door
        self.pipeline = pipeline
        self.number = port
        self._writers = []

    async def connect(self, content=b"", limit=1 << 16, source="127.0.0.1"):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.number, limit=limit, local_addr=(source, 0)
        )
        self._writers.append(writer)
        writer.write(content)
        return Client(reader, writer)

    async def check_well(self):
        assert await (await self.connect(HEALTH)).status() == 200

    def close(self):
        for writer in self._writers:
            writer.transport.abort()


async def until(is_so):
    async with asyncio.timeout(WAIT):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def listening(fleet=None, **options):
    """Yields a port; afterwards nothing of its clients is left, and nothing was logged."""
    num_tasks = len(asyncio.all_tasks())
    async with opening(fleet or FakeFleet(), **options) as (opened, pipeline, number):
        port = Port(opened, pipeline, number)
        try:
            yield port
            await port.check_well()
        finally:
            port.close()
        await until(lambda: not list(opened._connections))
        await until(lambda: len(asyncio.all_tasks()) <= num_tasks)
        assert not opened._connections._waiting
        assert pipeline.request_bytes.held == 0


@pytest.fixture(autouse=True)
def quiet(caplog):
    """No client can make the log say anything above INFO."""
    caplog.set_level(logging.INFO)
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [record for record in caplog.records if "uvicorn" in record.name]


async def test_head_that_does_not_come_ends_the_connection(monkeypatch):
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.2)
    async with listening() as port:
        silent = await port.connect()
        slow = await port.connect()
        again = await port.connect(HEALTH)
        assert await again.status() == 200
        again.send(b"G")
        for byte in b"GET / HTTP/1.1\r\na: " + b"b" * 30:
            slow.send(bytes([byte]))
            await asyncio.sleep(0.01)
        for client in (silent, slow, again):
            assert await client.rest() == b""


async def test_connection_with_an_answered_request_may_wait_for_the_next(monkeypatch):
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.05)
    async with listening() as port:
        client = await port.connect(HEALTH)
        assert await client.status() == 200
        await asyncio.sleep(0.2)
        client.send(HEALTH)
        assert await client.status() == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 70_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200, 431),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 70_000, 431),
        (b"GET / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET //[ HTTP/1.1\r\nhost: [\r\n\r\n", 404),
        (b"GET /v1/models/ HTTP/1.1\r\nhost: [\r\n\r\n", 200),
        (b"GET /health/ HTTP/1.1\r\nhost: [\r\n\r\n", 404),
        (b"GET /%ff%00%0d%0aa:b HTTP/1.1\r\n\r\n", 404),
        (b"GET /v1/models/%0d%0aa:%ff HTTP/1.1\r\n\r\n", 404),
        (b"GET /v1/models/{model:path} HTTP/1.1\r\n\r\n", 404),
        (b"OPTIONS /health HTTP/1.1\r\norigin: b\r\n\r\n", 405),
    ],
)
async def test_wrong_head_is_refused(head, status):
    async with listening() as port:
        client = await port.connect(head)
        assert await client.status() == status


async def test_answer_has_no_name_of_the_server_and_lets_no_other_site_read_it():
    async with listening() as port:
        client = await port.connect(b"GET /health HTTP/1.1\r\nhost: a\r\norigin: http://b\r\n\r\n")
        head = (await client.until(b"\r\n\r\n")).lower()
        assert b"server:" not in head
        assert b"access-control" not in head


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n",
        b"GET /health HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
        b"PRI * HTTP/2.0\r\n\r\n",
    ],
)
async def test_last_request_of_a_connection_is_answered_before_its_end(request_):
    async with listening() as port:
        client = await port.connect(request_)
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.count(b"HTTP/1.1") == 1


async def test_stream_to_a_client_without_chunks_ends_with_its_connection():
    fleet = FakeFleet()
    fleet.answer([7], [8])
    async with listening(fleet) as port:
        client = await port.connect(generate().replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, content = (await client.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert content.startswith(b"data: {")
    assert content.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_head_request_gets_the_head():
    async with listening() as port:
        client = await port.connect(b"HEAD /health HTTP/1.1\r\nhost: a\r\n\r\n" + HEALTH)
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert await client.status() == 200


async def test_body_is_asked_for_when_the_client_waits_for_that():
    fleet = FakeFleet()
    fleet.answer([7, 8])
    async with listening(fleet) as port:
        head, _, content = generate("/plain/whole").partition(b"\r\n\r\n")
        client = await port.connect(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(content)
        assert await client.status() == 200


async def test_body_that_comes_slowly_is_given_up(monkeypatch):
    monkeypatch.setattr(body, "_BODY_SECONDS", 0.2)
    async with listening() as port:
        client = await port.connect(
            b"POST /plain/whole HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(30):
            client.send(b"1\r\n{\r\n")
            await asyncio.sleep(0.01)
        assert await client.status() == 408
        assert await client.rest() == b""


@pytest.mark.parametrize("path", ["/plain/whole", "/none", "/health"])
async def test_body_that_is_too_long_is_answered_though_it_is_still_sent(path):
    async with listening() as port:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n"
        client = await port.connect(head.encode() + bytes(8 << 20))
        assert await client.status() == {"/plain/whole": 413, "/none": 404, "/health": 405}[path]
        assert await client.rest() == b""


async def test_body_without_length_is_bounded():
    async with listening() as port:
        client = await port.connect(
            b"POST /plain/whole HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        client.send((b"%x\r\n" % 4096 + bytes(4096) + b"\r\n") * (MAX_BODY_BYTES // 4096 + 2))
        assert await client.status() == 413


@pytest.mark.parametrize(
    "piece",
    [b"1\r\na\r\n" * 500, b"1;" + b"e" * 10_000 + b"\r\na\r\n", b"0\r\n" + b"a: b\r\n" * 20_000],
    ids=["tiny chunks", "extensions", "trailers"],
)
async def test_body_of_little_but_chunks_is_refused(piece):
    async with listening() as port:
        client = await port.connect(
            b"POST /plain/whole HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        client.send(piece * 100)
        assert await client.status() == 400
        assert await client.rest() == b""


async def test_compressed_body_is_refused():
    async with listening() as port:
        client = await port.connect(post("/plain/whole", b"x", "content-encoding: gzip"))
        assert await client.status() == 415


async def test_bodies_count_against_the_bound_until_their_clients_leave():
    async with listening(max_request_bytes=50_000) as port:
        held = [
            await port.connect(
                b"POST /plain/whole HTTP/1.1\r\ncontent-length: 50000\r\n\r\n" + bytes(20_000)
            )
            for _ in range(2)
        ]
        await until(lambda: port.pipeline.request_bytes.held == 40_000)
        late = await port.connect(post("/plain/whole", bytes(20_000)))
        assert await late.status() == 429
        for one in held:
            one.writer.close()
        await until(lambda: port.pipeline.request_bytes.held == 0)


async def test_requests_that_are_sent_together_are_answered_in_order():
    async with listening() as port:
        client = await port.connect(HEALTH + b"GET /none HTTP/1.1\r\n\r\n" + HEALTH)
        assert [await client.status() for _ in range(3)] == [200, 404, 200]


@pytest.mark.parametrize("number", [18, 5000])
async def test_too_many_requests_without_reading_end_the_connection(number):
    async with listening() as port:
        client = await port.connect(HEALTH * number)
        assert await client.rest() == b""


async def test_bytes_behind_a_request_in_progress_are_bounded_and_end_it():
    fleet = FakeFleet()
    async with listening(fleet) as port:
        client = await port.connect(generate())
        await until(lambda: fleet.num_open == 1)
        for _ in range(1000):
            client.send(b"POST /plain/whole HTTP/1.1\r\ncontent-length: 90000\r\n\r\n" + bytes(900))
            await asyncio.sleep(0)
            if client.reader.at_eof() or client.reader.exception():
                break
        assert await client.rest() == b""
        await until(lambda: fleet.num_open == 0)


@pytest.mark.parametrize("path", ["/plain/stream", "/plain/whole"])
@pytest.mark.parametrize("behind", [b"", HEALTH, HEALTH + b"GET / HT"])
@pytest.mark.parametrize("is_half", [False, True])
async def test_client_that_leaves_cancels_at_once(path, behind, is_half):
    fleet = FakeFleet()
    fleet.put(Tokens(token_ids=(7,)))
    async with listening(fleet) as port:
        client = await port.connect(generate(path) + behind)
        await until(lambda: fleet.num_open == 1)
        if is_half:
            client.writer.write_eof()
        else:
            client.writer.close()
        await until(lambda: fleet.num_open == 0)
        await until(lambda: not list(port.door._connections))


async def test_nonsense_behind_a_request_in_progress_is_not_answered_within_its_answer():
    fleet = FakeFleet()
    fleet.put(Tokens(token_ids=(7,)))
    async with listening(fleet) as port:
        client = await port.connect(generate())
        await client.until(b"token_ids")
        client.send(b"\x00\x01nonsense\r\n\r\n")
        assert b"HTTP" not in await client.rest()
        await until(lambda: fleet.num_open == 0)


@pytest.mark.parametrize("reads_on", [False, True])
async def test_stream_that_is_not_read_is_cut_off(monkeypatch, reads_on):
    monkeypatch.setattr(door, "_UNREAD_SPARE_SECONDS", 5.0 if reads_on else 0.5)
    fleet = FakeFleet()
    readers = SlowReaders(0.2)
    async with listening(fleet, slow_readers=readers) as port:
        ticking = asyncio.create_task(readers.run())
        client = await port.connect(generate(max_tokens=100), limit=1)
        client.writer.transport.pause_reading()
        await fleet.is_asked.wait()
        async with asyncio.timeout(WAIT):
            while fleet.num_open:
                fleet.put(*(Tokens(token_ids=(7,) * 1000) for _ in range(20)))
                await asyncio.sleep(0.005)
        if reads_on:
            client.writer.transport.resume_reading()
            await client.read_past(b"read faster")
            client.writer.close()
        await until(lambda: not list(port.door._connections))
        ticking.cancel()


async def test_large_answer_that_is_not_read_is_cut_off(monkeypatch):
    monkeypatch.setattr(door, "_UNREAD_SPARE_SECONDS", 0.1)
    async with listening(slow_readers=SlowReaders(0.2)) as port:
        client = await port.connect(post("/plain/large", b""), limit=1)
        client.writer.transport.pause_reading()
        await until(lambda: len(list(port.door._connections)) == 1)
        await until(lambda: not list(port.door._connections))


async def test_large_answer_that_is_read_slowly_comes_whole():
    async with listening() as port:
        client = await port.connect(post("/plain/large", b""), limit=1 << 26)
        assert await client.status() == 200


async def test_oldest_connection_without_a_request_gives_way(monkeypatch):
    monkeypatch.setattr(door, "_SPARE_CONNECTIONS", 0)
    fleet = FakeFleet()
    async with listening(fleet, max_concurrent_requests=4) as port:
        busy = await port.connect(generate())
        await until(lambda: fleet.num_open == 1)
        oldest = await port.connect(b"GET / HT")
        sending = await port.connect(b"POST /plain/whole HTTP/1.1\r\ncontent-length: 9\r\n\r\n{")
        idle = await port.connect(HEALTH)
        assert await idle.status() == 200
        await port.check_well()
        assert await oldest.rest() == b""
        for _ in range(40):
            await port.connect()
        await port.check_well()
        for one in (sending, idle):
            assert await one.rest() == b""
        fleet.answer([7])
        assert b"[DONE]" in await busy.until(b"0\r\n\r\n")


async def test_peer_with_most_connections_gives_way_first(monkeypatch):
    monkeypatch.setattr(door, "_SPARE_CONNECTIONS", 0)
    async with listening(max_concurrent_requests=6) as port:
        other = await port.connect(source="127.0.0.2")
        flood = [await port.connect() for _ in range(40)]
        other.send(HEALTH)
        assert await other.status() == 200
        assert await flood[0].rest() == b""


async def test_connection_beyond_those_with_requests_is_refused(monkeypatch):
    monkeypatch.setattr(door, "_SPARE_CONNECTIONS", 0)
    fleet = FakeFleet()
    async with listening(fleet, max_concurrent_requests=2) as port:
        busy = [await port.connect(generate()) for _ in range(2)]
        await until(lambda: fleet.num_open == 2)
        late = await port.connect(HEALTH)
        assert await late.status() == 503
        for _ in busy:
            fleet.answer([7])
        for one in busy:
            await one.until(b"[DONE]")


async def test_random_bytes_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(connection, "_LINGER_SECONDS", 0.05)
    random_ = random.Random(16)
    fleet = FakeFleet()
    parts = [HEALTH, generate(), b"\r\n\r\n", b"1\r\na\r\n", b"transfer-encoding: chunked\r\n"]
    parts += [b"POST /plain/whole HTTP/1.1\r\n", b"content-length: 7\r\n", b"\x00\xff", b": "]
    async with listening(fleet, max_concurrent_requests=64) as port:
        for _ in range(300):
            content = b"".join(random_.choices(parts, k=random_.randrange(1, 6)))
            if random_.random() < 0.5:
                place = random_.randrange(len(content))
                content = content[:place] + random_.randbytes(4) + content[place:]
            client = await port.connect(content)
            if random_.random() < 0.5:
                client.writer.write_eof()
            if random_.random() < 0.2:
                await port.check_well()
    assert fleet.num_open == 0
