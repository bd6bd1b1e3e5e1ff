"""The wire of a connection with TLS, under a peer that takes what it is sent a little at a time."""

import asyncio
import contextlib
import socket
import ssl

import pytest

from servicekit.http_wire import Wire
from servicekit.tls import operations_tls
from tests.fakes.certificates import make_certificates

NUM_CERTIFICATES = 40
"""So many take more than the smallest buffer of a socket."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    chain = (made / "server.pem").read_bytes() + NUM_CERTIFICATES * (made / "ca.pem").read_bytes()
    (made / "chain.pem").write_bytes(chain)
    return made


@pytest.fixture
def ends():
    """Two connected sockets that do not block; what the first sends soon finds no place."""
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for end in (one, other):
        end.setblocking(False)
    with one, other:
        yield one, other


async def test_handshake_that_finds_no_place_goes_on_when_there_is(made, ends):
    wire = Wire(ends[0], operations_tls(made / "chain.pem", made / "server.key"))
    received, was_stuck = bytearray(), asyncio.Event()
    has_come = asyncio.Event()

    def react():
        part = wire.receive(1024)
        if part is None and wire._is_writer_set:
            was_stuck.set()
        if part:
            received.extend(part)
            has_come.set()

    wire.follow(react)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=made / "ca.pem")
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        ends[1].sendall(outgoing.read())
        await was_stuck.wait()
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(await loop.sock_recv(ends[1], 1000))
        client.write(b"hello")
        ends[1].sendall(outgoing.read())
        await has_come.wait()
    assert received == b"hello"
    assert not wire._is_writer_set
    wire.close()
