import asyncio
import contextlib
import socket
import threading

import grpc
import pytest

from protos.wire.channel import server_options
from servicekit import listening
from servicekit.http_server import HttpServer
from servicekit.listening import (
    CannotListen,
    add_grpc_port,
    listen,
    max_grpc_connections,
    reserved_port,
)
from servicekit.process import max_port_connections

BOTH = ["127.0.0.1", "::1"]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def reached(port):
    """Returns the addresses of this machine at which something listens."""
    found = []
    for host in BOTH:
        try:
            socket.create_connection((host, port), 5).close()
            found.append(host)
        except OSError:
            pass
    return found


@pytest.fixture
def two_addresses(monkeypatch):
    """Makes a name of both loopback addresses."""
    real = socket.getaddrinfo

    def resolve(host, *args, **options):
        if host != "both.test":
            return real(host, *args, **options)
        return [answer for one in BOTH for answer in real(one, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("::", BOTH),
        ("0.0.0.0", ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("::ffff:127.0.0.1", ["127.0.0.1"]),
        ("both.test", BOTH),
    ],
)
@pytest.mark.parametrize("is_chosen", [False, True])
async def test_all_ports_listen_on_the_same_addresses(two_addresses, host, expected, is_chosen):
    ports = [0, 0]
    if is_chosen:
        with socket.create_server(("", 0)) as first, socket.create_server(("", 0)) as second:
            ports = [one.getsockname()[1] for one in (first, second)]
    operations = HttpServer({})
    server = grpc.aio.server(options=server_options())

    operations_port = await operations.start(host, ports[0])
    port = add_grpc_port(server.add_insecure_port, host, ports[1])
    await server.start()

    assert reached(operations_port) == expected
    assert reached(port) == expected
    if is_chosen:
        assert [operations_port, port] == ports
    await server.stop(None)
    await operations.stop()


async def test_connections_beyond_the_bound_are_closed_and_a_place_is_free_again():
    server = grpc.aio.server(options=server_options(max_connections=2))
    port = add_grpc_port(server.add_insecure_port, "127.0.0.1", 0)
    await server.start()

    async def first_byte():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return await asyncio.wait_for(reader.read(1), 10)

    writers = []
    assert [await first_byte() for _ in range(4)] == [b"\0", b"\0", b"", b""]
    for writer in writers:
        writer.close()
    async with asyncio.timeout(20):
        while not await first_byte():
            pass
    await server.stop(None)
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def test_addresses_of_a_host_share_its_connections(two_addresses):
    most = max_port_connections()

    assert most > 2
    assert max_grpc_connections("both.test") == most // 2
    assert max_grpc_connections("127.0.0.1") == most
    assert max_grpc_connections("no.such.host.invalid") == most


@needs_ipv6
@pytest.mark.parametrize("taken", BOTH)
def test_port_in_use_on_one_address_is_in_use(two_addresses, taken):
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    with socket.create_server((taken, 0), family=family) as other:
        port = other.getsockname()[1]
        for host in ("both.test", "::", taken):
            with pytest.raises(CannotListen, match=f":{port} .Address already in use.; choose"):
                listen(host, port, "port")


@needs_ipv6
def test_free_port_is_one_that_is_free_on_all_addresses(two_addresses, monkeypatch):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        taken = other.getsockname()[1]
        real, offered = listening._listener, iter([taken, taken])

        def offer(host, port):
            return real(host, next(offered, 0) if (host, port) == ("127.0.0.1", 0) else port)

        monkeypatch.setattr(listening, "_listener", offer)
        listeners = listen("both.test", 0, "port")

    ports = {one.getsockname()[1] for one in listeners}
    assert len(listeners) == 2
    assert len(ports) == 1
    assert taken not in ports
    for one in listeners:
        one.close()


def test_address_of_a_name_that_this_machine_has_not_is_left_out(monkeypatch):
    monkeypatch.setattr(listening, "_numeric", lambda host: ["192.0.2.1", "127.0.0.1"])

    [listener] = listen("some.test", 0, "port")

    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


def test_machine_without_ipv6_takes_all_its_ipv4_addresses(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)

    [listener] = listen("::", 0, "port")

    assert listener.getsockname()[0] == "0.0.0.0"
    listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
async def test_reserved_port_is_shared_with_those_that_know_and_with_no_one_else(host):
    with reserved_port(host, 0, "port") as port:
        servers = []
        for _ in range(3):
            servers.append(grpc.aio.server(options=server_options(is_port_shared=True)))
            add_grpc_port(servers[-1].add_insecure_port, host, port, is_shared=True)
            await servers[-1].start()

        if has_ipv6():
            assert reached(port) == (BOTH if host == "::" else BOTH[:1])
        with pytest.raises(CannotListen, match="Address already in use"):
            listen(host, port, "port")
        with (
            pytest.raises(CannotListen, match="Address already in use"),
            reserved_port(host, port, "port"),
        ):
            pass
        for server in servers:
            await server.stop(None)


def test_port_is_reserved_before_anyone_listens_and_free_afterwards():
    with reserved_port("127.0.0.1", 0, "port") as port:
        assert reached(port) == []
        for _ in range(2):
            with pytest.raises(CannotListen), reserved_port("127.0.0.1", port, "port"):
                pass
            with pytest.raises(CannotListen):
                listen("127.0.0.1", port, "port")

    [listener] = listen("127.0.0.1", port, "port")
    listener.close()


def test_reserved_port_spreads_connections_over_those_that_listen():
    with reserved_port("127.0.0.1", 0, "http-port") as port:
        listeners = [
            one for _ in range(2) for one in listen("127.0.0.1", port, "http-port", is_shared=True)
        ]
        clients = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(32)]

        accepted = [0, 0]
        for number, listener in enumerate(listeners):
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    accepted[number] += 1

        assert sum(accepted) == 32
        assert min(accepted) > 0
        for one in (*clients, *listeners):
            one.close()


@needs_ipv6
def test_shared_port_is_refused_where_ipv6_cannot_be_kept_out(monkeypatch):
    monkeypatch.setattr(listening, "_TURN_SECONDS", 0.05)
    with (
        reserved_port("0.0.0.0", 0, "port") as port,
        socket.create_server(("::", port), family=socket.AF_INET6),
        pytest.raises(CannotListen, match=r"0\.0\.0\.0:\d+ .Address already in use"),
    ):
        add_grpc_port(lambda address: 0, "0.0.0.0", port, is_shared=True)


def test_shared_port_of_all_ipv4_addresses_is_not_probed(monkeypatch):
    """A probe between another's turn and its bind would let that one listen on IPv6, too."""

    def refuse(*_, **__):
        raise AssertionError("nothing but gRPC binds it")

    with reserved_port("0.0.0.0", 0, "port") as port:
        monkeypatch.setattr(listening, "_bound", refuse)

        assert add_grpc_port(lambda address: 0, "0.0.0.0", port, is_shared=True) == port


@needs_ipv6
def test_process_that_shares_a_port_waits_while_another_keeps_ipv6_out():
    with reserved_port("0.0.0.0", 0, "port") as port:
        other = socket.socket(socket.AF_INET6)
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::", port))
        closing = threading.Timer(0.05, other.close)
        closing.start()
        assert add_grpc_port(lambda address: 0, "0.0.0.0", port, is_shared=True) == port
        closing.join()
