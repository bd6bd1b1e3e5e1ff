"""The HTTP port with TLS: who gets a connection, and that the bounds on it hold."""

import asyncio
import logging
import shutil
import ssl
from contextlib import asynccontextmanager

import httpx
import pytest

from router.http import connection, door
from servicekit.tls import server_tls
from tests.fakes.certificates import make_certificates, replace
from tests.fakes.fake_fleet import FakeFleet
from tests.router.http.serving import opening

WAIT = 10.0
HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def serving(folder, client_ca=None):
    """Yields the door and its port."""
    source = server_tls(folder / "server.pem", folder / "server.key", client_ca)
    async with opening(FakeFleet(), tls=source) as (opened, _, port):
        yield opened, port


def trusting(made, ca="ca.pem", shows=None):
    context = ssl.create_default_context(cafile=made / ca)
    if shows:
        context.load_cert_chain(made / f"{shows}.pem", made / f"{shows}.key")
    return context


async def health(port, context):
    """Returns the status of a request on a connection of its own."""
    async with httpx.AsyncClient(verify=context, timeout=WAIT) as client:
        return (await client.get(f"https://localhost:{port}/health")).status_code


async def connect(port, context=None, name="localhost"):
    named = {"ssl": context, "server_hostname": name} if context else {}
    return await asyncio.open_connection("127.0.0.1", port, **named)


async def ended(reader):
    """Reads until the connection ends, one way or another."""
    async with asyncio.timeout(WAIT):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def until(is_so):
    async with asyncio.timeout(WAIT):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_right_certificates_are_answered(made):
    async with serving(made) as (_, port):
        assert await health(port, trusting(made)) == 200
    async with serving(made, made / "ca.pem") as (_, port):
        assert await health(port, trusting(made, shows="client")) == 200


async def test_wrong_ca_and_name_are_the_clients_to_refuse(made, caplog):
    async with serving(made) as (_, port):
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await health(port, trusting(made, "other/ca.pem"))
        await until(lambda: "HTTP client has no TLS connection" in caplog.text)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await connect(port, trusting(made), "third.test")
        assert await health(port, trusting(made)) == 200
    [line] = caplog.messages
    assert "peer=127.0.0.1 num_unlogged=0 error=" in line


@pytest.mark.parametrize(
    ("shows", "said"),
    [(None, "peer did not return a certificate"), ("other/client", "certificate verify failed")],
)
async def test_client_must_show_a_certificate_of_the_ca(made, caplog, shows, said):
    async with serving(made, made / "ca.pem") as (_, port):
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            await health(port, trusting(made, shows=shows))
        await until(lambda: said in caplog.text)
        assert await health(port, trusting(made, shows="client")) == 200


async def test_plain_text_on_the_port_is_told_in_the_log_once(made, caplog):
    async with serving(made) as (_, port):
        for _ in range(3):
            reader, writer = await connect(port)
            writer.write(HEALTH)
            assert await ended(reader) == b""
            writer.close()
        assert await health(port, trusting(made)) == 200
    [line] = caplog.messages
    said = "error=the client speaks plain text, but this port speaks TLS: use https://"
    assert line.endswith(said)


async def test_tls_on_a_plain_port_is_no_http(made):
    async with opening(FakeFleet()) as (_, _, port):
        with pytest.raises(httpx.ConnectError, match="WRONG_VERSION_NUMBER"):
            await health(port, trusting(made))


async def test_certificates_are_replaced_while_connections_go_on(made, tmp_path, caplog):
    caplog.set_level(logging.INFO, "servicekit.tls")
    for name in ("server.pem", "server.key"):
        shutil.copy(made / name, tmp_path / name)
    async with serving(tmp_path) as (_, port):
        reader, writer = await connect(port, trusting(made))
        for name in ("server.pem", "server.key"):
            replace(tmp_path / name, made / "other" / name)
        assert await health(port, trusting(made, "other/ca.pem")) == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await health(port, trusting(made))
        writer.write(HEALTH)
        assert (await ended(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert any(one.startswith("certificates reloaded cert=") for one in caplog.messages)


async def test_handshake_has_a_deadline(made, monkeypatch, caplog):
    monkeypatch.setattr(door, "_HANDSHAKE_SECONDS", 0.05)
    async with serving(made) as (opened, port):
        reader, writer = await connect(port)
        assert await ended(reader) == b""
        writer.close()
        await until(lambda: not opened._connecting)
    assert "SSL handshake is taking longer than" in caplog.text


async def test_handshakes_are_bounded_and_the_oldest_gives_way(made, monkeypatch):
    monkeypatch.setattr(door, "_MAX_HANDSHAKES", 4)
    async with serving(made) as (opened, port):
        idle = [await connect(port) for _ in range(12)]
        assert await health(port, trusting(made)) == 200
        assert len(opened._connecting) <= 4
        assert await ended(idle[0][0]) == b""
        opened.drain()
        for reader, writer in idle:
            assert await ended(reader) == b""
            writer.close()


async def test_head_has_a_deadline(made, monkeypatch):
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.05)
    async with serving(made) as (_, port):
        reader, writer = await connect(port, trusting(made))
        writer.write(b"GET /health HT")
        assert await ended(reader) == b""
        writer.close()


async def test_answer_before_the_end_of_the_request_arrives(made, monkeypatch):
    monkeypatch.setattr(connection, "_LINGER_SECONDS", 0.2)
    async with serving(made) as (_, port):
        reader, writer = await connect(port, trusting(made))
        writer.write(b"POST /v1/none HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
        writer.write(bytes(300_000))
        assert (await ended(reader)).startswith(b"HTTP/1.1 ")
        writer.close()
