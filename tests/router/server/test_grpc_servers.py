import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from router.server import grpc_servers
from router.server.grpc_servers import GrpcServers
from servicekit.listening import CannotListen

HOST = "127.0.0.1"
LISTENING = "0A"


class Waiting(grpc.GenericRpcHandler):
    """Answers all calls of a method when there are so many."""

    def __init__(self, num_calls):
        self._barrier = asyncio.Barrier(num_calls)

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request, context):
        await self._barrier.wait()
        return request


def make_servers():
    return GrpcServers(HOST, None, max_request_bytes=1000, options=[], interceptors=[])


def num_listeners(port):
    """Returns how many sockets listen on a port."""
    # gRPC listens on IPv4 through sockets of IPv6.
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    places = [line.split()[1:4:2] for table in tables for line in table]
    return sum(state == LISTENING and int(at.split(":")[1], 16) == port for at, state in places)


async def test_all_servers_share_one_port_and_the_connections_to_it():
    num_calls = 3 * grpc_servers._NUM_SERVERS
    servers = make_servers()
    servers.add_generic_rpc_handlers([Waiting(num_calls)])
    port = await servers.start(0, is_reserved=False)
    assert num_listeners(port) == grpc_servers._NUM_SERVERS
    async with AsyncExitStack() as opened:
        opened.push_async_callback(servers.stop, None)
        channels = [
            await opened.enter_async_context(
                grpc.aio.insecure_channel(
                    f"{HOST}:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
                )
            )
            for _ in range(num_calls)
        ]
        calls = [
            channel.unary_unary("/a.Service/Call")(str(number).encode(), timeout=20)
            for number, channel in enumerate(channels)
        ]

        answers = await asyncio.gather(*calls)

    assert answers == [str(number).encode() for number in range(num_calls)]
    assert num_listeners(port) == 0


async def test_a_port_with_other_servers_is_refused():
    first, second = make_servers(), make_servers()
    port = await first.start(0, is_reserved=False)
    try:
        with pytest.raises(CannotListen, match=f"{HOST}:{port} .*in use.*another --port"):
            await second.start(port, is_reserved=False)
    finally:
        await first.stop(None)
        await second.stop(None)


async def test_connections_of_all_servers_are_bounded_together(monkeypatch):
    made = []
    monkeypatch.setattr(grpc_servers, "max_grpc_connections", lambda host: 100)
    monkeypatch.setattr(
        grpc_servers.grpc.aio, "server", lambda options, **_: made.append(dict(options))
    )

    make_servers()

    bounds = [options["grpc.max_allowed_incoming_connections"] for options in made]
    assert 90 < sum(bounds) <= 100
    assert len(bounds) == grpc_servers._NUM_SERVERS
