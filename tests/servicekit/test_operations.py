import asyncio
import contextlib
import socket

import pytest
from prometheus_client import CollectorRegistry, Gauge

from servicekit.address import join as address
from servicekit.http_server import HttpServer
from servicekit.listening import CannotListen, add_grpc_port
from servicekit.operations import (
    metrics_handler,
    probe_handler,
)


class Service:
    """What a service gives to its operations port; `is_ready` is the test's to set."""

    def __init__(self):
        registry = CollectorRegistry()
        scraped = Gauge("scrapes", "Scrapes.", registry=registry)
        Gauge("vllm:waiting", "As others call it.", registry=registry)
        self.is_ready = False
        self.operations = HttpServer(
            {
                "/metrics": metrics_handler(registry, scraped.inc),
                "/readyz": probe_handler(lambda: (self.is_ready, "waiting")),
            }
        )
        self.port = 0

    async def get(self, path):
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: x")

    async def ask(self, head):
        """Returns the status and the body of an answer."""
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(head.encode() + b"\r\n\r\n")
            answer = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
        return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


def not_called(where):
    raise AssertionError(f"gRPC was asked to listen on {where}")


@pytest.fixture
async def service():
    service = Service()
    service.port = await service.operations.start("127.0.0.1", 0)
    yield service
    await service.operations.stop()


async def test_probe_follows_the_state(service):
    assert await service.get("/readyz") == (503, "waiting\n")
    service.is_ready = True
    assert await service.get("/readyz?verbose") == (200, "waiting\n")


async def test_scrape_shows_the_registry_as_it_is_now(service):
    for expected in ("scrapes 1.0", "scrapes 2.0"):
        code, body = await service.get("/metrics?name=x")
        assert code == 200
        assert expected in body.splitlines()


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;version=0.0.4",
        "text/plain;version=1.0.0;escaping=underscores",
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
    ],
)
async def test_colon_of_a_name_is_in_every_format(service, accept):
    code, body = await service.ask(f"GET /metrics HTTP/1.1\r\nAccept: {accept}")

    assert code == 200
    assert "\nvllm:waiting 0.0\n" in body
    assert body.endswith("# EOF\n") == accept.startswith("application/openmetrics-text")


@pytest.mark.parametrize(
    "accept", ["text/plain; version=x", "application/openmetrics-text; version=x"]
)
async def test_scrape_that_accepts_nonsense_is_answered_in_plain_text(service, accept):
    code, body = await service.ask(f"GET /metrics HTTP/1.1\r\nAccept: {accept}")

    assert code == 200
    assert "scrapes 1.0" in body.splitlines()


async def test_unknown_path_is_told_the_known_ones(service):
    assert await service.get("/other") == (404, "not found; paths are /metrics, /readyz\n")


@pytest.mark.parametrize("path", ["/readyz", "/metrics", "/other"])
async def test_head_brings_the_headers_of_a_get_and_no_body(service, path):
    async def exchange(method):
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(f"{method} {path} HTTP/1.1\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()
        return head, body

    head, body = await exchange("HEAD")
    expected_head, expected_body = await exchange("GET")

    assert (head, body) == (expected_head, b"")
    assert f"Content-Length: {len(expected_body)}".encode() in head
    assert expected_body


@pytest.mark.parametrize("head", ["POST /metrics HTTP/1.1", "nonsense"])
async def test_other_methods_are_refused(service, head):
    assert await service.ask(head) == (405, "use GET or HEAD\n")


async def test_endless_header_is_cut_off_and_the_port_goes_on(service):
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"x" * 100_000)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()

    assert (await service.get("/readyz"))[0] == 503


async def test_ports_in_use_are_named_alike_with_the_option_to_change(service):
    words = f"cannot listen on 127.0.0.1:{service.port} (Address already in use); choose another "

    with pytest.raises(CannotListen) as caught:
        await HttpServer({}).start("127.0.0.1", service.port)
    assert str(caught.value) == f"{words}--operations-port or host"
    with pytest.raises(CannotListen) as caught:
        add_grpc_port(not_called, "127.0.0.1", service.port)
    assert str(caught.value) == f"{words}--port or host"


async def test_host_that_cannot_be_resolved_is_named():
    # How it is worded is up to the system's resolver.
    words = r"^cannot listen on 256\.0\.0\.1:80 \([^()]+\); choose another"
    with pytest.raises(CannotListen, match=words):
        add_grpc_port(not_called, "256.0.0.1", 80)
    with pytest.raises(CannotListen, match=words):
        await HttpServer({}).start("256.0.0.1", 80)


def test_free_port_is_handed_to_grpc():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def listen(where):
        assert where == f"127.0.0.1:{port}"
        with socket.create_server(("127.0.0.1", port)) as server:
            return server.getsockname()[1]

    assert add_grpc_port(listen, "127.0.0.1", port) == port


def test_port_that_grpc_alone_refuses_is_named_too():
    def refuse(where):
        raise RuntimeError(f"failed to bind {where}")

    with pytest.raises(CannotListen, match=r"on 127\.0\.0\.1:0 \(failed to bind .* --port or"):
        add_grpc_port(refuse, "127.0.0.1", 0)


def test_only_an_ipv6_address_stands_in_brackets():
    assert address("::1", 80) == "[::1]:80"
    assert address("localhost", 80) == "localhost:80"
