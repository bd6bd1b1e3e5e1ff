"""The port of probes under clients that send nothing, read nothing, or never leave."""

import asyncio
import contextlib
import socket
import ssl

import pytest

from servicekit import http_server
from servicekit.http_server import Answer, HttpServer
from servicekit.tls import operations_tls
from tests.fakes.certificates import make_certificates, replace

ONE, OTHER = "127.0.0.1", "127.0.0.2"
NUM_SLOW = 300
LARGE = 64 * 1024 * 1024


class Service:
    """A server with a probe, an answer too large for any buffer, one without end, and a fault."""

    def __init__(self, certificates=None):
        self.num_waiting = 0
        self.has_begun = asyncio.Event()
        self.server = HttpServer(
            {"/livez": self._live, "/large": self._large, "/hangs": self._hang, "/bad": self._fail},
            certificates
            and operations_tls(certificates / "server.pem", certificates / "server.key"),
        )
        # What clients speak.
        self.context = certificates and trusting(certificates / "ca.pem")
        self.port = 0
        self._writers = []

    async def __aenter__(self):
        self.port = await self.server.start(ONE, 0)
        return self

    async def __aexit__(self, *_):
        for writer in self._writers:
            writer.transport.abort()
        await self.server.stop()
        await asyncio.sleep(0)

    async def _live(self, _):
        return Answer(body=b"fine\n")

    async def _large(self, _):
        return Answer(body=bytes(LARGE))

    async def _hang(self, _):
        self.num_waiting += 1
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.num_waiting -= 1

    async def _fail(self, _):
        raise RuntimeError("a mistake")

    async def connect(self, source, content=b""):
        """Returns a connection from an address of this machine, on which some bytes were sent."""
        reader, writer = await asyncio.open_connection(
            ONE, self.port, local_addr=(source, 0), ssl=self.context
        )
        self.keep(writer)
        writer.write(content)
        return reader, writer

    def keep(self, writer):
        """Leaves a connection open until the end of the test."""
        self._writers.append(writer)

    async def get(self, source, path="/livez"):
        """Returns the first line of the answer."""
        async with asyncio.timeout(10):
            reader, _ = await self.connect(source, f"GET {path} HTTP/1.1\r\n\r\n".encode())
            line = await reader.readline()
        return line.decode().strip()


def trusting(ca):
    """Returns a client's context that trusts a CA."""
    return ssl.create_default_context(cafile=ca)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def plain():
    async with Service() as service:
        yield service


@pytest.fixture
async def secure(made):
    async with Service(made) as service:
        yield service


@pytest.fixture(params=["plain", "secure"])
def service(request):
    return request.getfixturevalue(request.param)


async def slow(service, content, sources, count=NUM_SLOW):
    """Returns connections that go no further."""
    async with asyncio.timeout(20):
        return [await service.connect(sources[i % len(sources)], content) for i in range(count)]


async def is_closed(reader):
    async with asyncio.timeout(10):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize("content", [b"", b"G", b"GET /livez HTTP/1.1\r\nHost: x\r\n"])
async def test_slow_connections_of_one_peer_keep_no_probe_away(service, content):
    held = await slow(service, content, [ONE])

    for source in (OTHER, ONE, OTHER):
        assert await service.get(source) == "HTTP/1.1 200 OK"
    assert await is_closed(held[0][0]), "the oldest makes room"


async def test_slow_connections_of_many_peers_keep_no_probe_away(service):
    sources = [f"127.0.1.{number}" for number in range(1, 31)]
    await slow(service, b"GET", sources)

    for source in (sources[0], OTHER):
        assert await service.get(source) == "HTTP/1.1 200 OK"


async def test_flood_takes_no_connection_of_another_peer(service):
    reader, writer = await service.connect(OTHER, b"GET /livez HTTP/1.1\r\n")
    await slow(service, b"", [ONE])

    writer.write(b"\r\n")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_requests_without_end_keep_no_probe_of_the_same_peer_away(plain):
    sockets = [socket.socket() for _ in range(200)]
    for one in sockets:
        # All at once: the server's turn comes later.
        one.connect((ONE, plain.port))
        one.sendall(b"GET /hangs HTTP/1.1\r\n\r\n")

    assert await plain.get(ONE) == "HTTP/1.1 200 OK"
    assert await plain.get(OTHER) == "HTTP/1.1 200 OK"
    assert plain.num_waiting <= 16
    for one in sockets:
        one.close()


async def test_request_that_does_not_come_is_given_up(service, monkeypatch):
    monkeypatch.setattr(http_server, "_REQUEST_SECONDS", 0.1)
    reader, _ = await service.connect(ONE, b"GET /livez")
    assert await is_closed(reader)


async def test_answer_that_is_not_read_is_given_up(plain, monkeypatch):
    monkeypatch.setattr(http_server, "_ANSWER_SECONDS", 0.2)
    with socket.create_connection((ONE, plain.port)) as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.5)
        client.setblocking(False)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                while part := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                    received += len(part)
    assert received < LARGE


async def test_request_in_pieces_is_answered(service):
    reader, writer = await service.connect(ONE)
    for byte in b"GET /livez HTTP/1.1\r\n\r\n":
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await reader.read()).endswith(b"fine\n")


async def test_large_answer_comes_whole(service):
    reader, _ = await service.connect(ONE, b"GET /large HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(20):
        assert (await reader.read()).endswith(bytes(LARGE))


async def test_fault_of_a_handler_is_answered_and_logged(service, caplog):
    assert await service.get(ONE, "/bad") == "HTTP/1.1 500 Internal Server Error"
    assert "a mistake" in caplog.text
    assert await service.get(ONE) == "HTTP/1.1 200 OK"


async def test_stop_leaves_nothing_of_half_open_connections(caplog, monkeypatch):
    monkeypatch.setattr(http_server, "_STOP_SECONDS", 0.1)
    async with Service() as service:
        silent, _ = await service.connect(ONE)
        half, writer = await service.connect(ONE, b"GET /livez HTTP/1.1\r\n")
        writer.write_eof()
        waiting, _ = await service.connect(ONE, b"GET /hangs HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(10):
            await service.has_begun.wait()
            await service.server.stop()

        for reader in (silent, half, waiting):
            assert await is_closed(reader)
        with pytest.raises(ConnectionRefusedError):
            await service.connect(ONE)
    assert not caplog.records


async def raw(service, content=b""):
    """Returns a connection in plain text, whatever the server speaks."""
    reader, writer = await asyncio.open_connection(ONE, service.port)
    service.keep(writer)
    writer.write(content)
    return reader, writer


def first_flight(name):
    """The first message of a client of TLS that wants a server of some name."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("content", [b"", b"\x16", first_flight("localhost")[:-1]])
async def test_handshakes_without_end_keep_no_probe_away(secure, content):
    held = [await raw(secure, content) for _ in range(NUM_SLOW)]
    assert await secure.get(ONE) == "HTTP/1.1 200 OK"
    assert await secure.get(OTHER) == "HTTP/1.1 200 OK"
    assert await is_closed(held[0][0])


async def test_handshake_that_does_not_go_on_is_given_up(secure, monkeypatch):
    monkeypatch.setattr(http_server, "_REQUEST_SECONDS", 0.1)
    reader, _ = await raw(secure, first_flight("localhost"))
    async with asyncio.timeout(10):
        # What the server sent, and then the end.
        with contextlib.suppress(ConnectionResetError):
            assert (await reader.read()).startswith(b"\x16")


async def test_answer_over_tls_that_is_not_read_is_given_up(secure, monkeypatch):
    monkeypatch.setattr(http_server, "_ANSWER_SECONDS", 0.2)
    _, writer = await secure.connect(ONE, b"GET /large HTTP/1.1\r\n\r\n")
    # asyncio itself would read ahead without end.
    writer.transport.pause_reading()
    await until_closed(secure)


async def until_closed(service):
    async with asyncio.timeout(10):
        while service.server._connections:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_client_of_plain_text_is_told_to_speak_tls(secure, caplog):
    reader, _ = await raw(secure, b"GET /livez HTTP/1.1\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    said = "the client speaks plain text, but this port speaks TLS: use https://"
    assert answer.endswith(f"{said}\n".encode())
    assert f"operations client not served peer={ONE} num_unlogged=0 error={said}" in caplog.text


async def test_client_of_tls_is_refused_at_once_where_there_is_none(plain, caplog, made):
    with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
        await asyncio.open_connection(ONE, plain.port, ssl=trusting(made / "ca.pem"))
    assert f"peer={ONE} num_unlogged=0 error=the client speaks TLS, but this port" in caplog.text


async def test_client_that_does_not_trust_the_certificate_is_told_of(secure, caplog, made):
    context = trusting(made / "other" / "ca.pem")

    def connect():
        with socket.create_connection((ONE, secure.port)) as one:
            context.wrap_socket(one, server_hostname=ONE)

    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(connect)
    await until_closed(secure)
    said = f"operations client not served peer={ONE} num_unlogged=0 error="
    assert f"{said}tlsv1 alert unknown ca" in caplog.text


async def test_client_that_leaves_in_its_handshake_is_told_of(secure, caplog, made):
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection(ONE, secure.port, ssl=trusting(made / "other" / "ca.pem"))
    await until_closed(secure)
    assert "error=the client left in the middle of its handshake" in caplog.text


async def test_port_that_is_looked_at_by_connecting_alone_says_nothing(service, caplog):
    _, writer = await raw(service)
    writer.close()
    await service.get(ONE)
    await until_closed(service)
    assert not caplog.records


async def test_new_connections_have_the_new_certificate(made, tmp_path):
    for name in ("server.pem", "server.key"):
        replace(tmp_path / name, made / name)
    replace(tmp_path / "ca.pem", made / "ca.pem")
    async with Service(tmp_path) as service:
        reader, writer = await service.connect(ONE, b"GET /livez HTTP/1.1\r\n")
        for name in ("server.pem", "server.key"):
            replace(tmp_path / name, made / "other" / name)
        with pytest.raises(ssl.SSLCertVerificationError):
            await service.get(ONE)
        service.context = trusting(made / "other" / "ca.pem")
        assert await service.get(ONE) == "HTTP/1.1 200 OK"
        writer.write(b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
