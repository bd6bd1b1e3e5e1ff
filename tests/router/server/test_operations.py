import asyncio
import contextlib

import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry, Gauge

from router.errors import StartupError
from router.server.grpc_server import SERVICE
from router.server.health import Health, State
from router.server.operations import OperationsServer


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
async def operations(registry):
    health = Health()
    scraped = Gauge("scrapes", "Scrapes.", registry=registry)
    server = OperationsServer(health, registry, scraped.inc)
    port = await server.start("127.0.0.1", 0)
    yield health, port
    await server.stop()


async def ask(port: int, head: str) -> tuple[int, str]:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + b"\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


async def get(port: int, path: str) -> tuple[int, str]:
    return await ask(port, f"GET {path} HTTP/1.1\r\nHost: x")


async def test_readiness_follows_the_state_and_liveness_does_not(operations):
    health, port = operations

    for state, ready in ((State.WAITING, 503), (State.SERVING, 200), (State.DRAINING, 503)):
        await health.enter(state)
        assert await get(port, "/readyz") == (ready, f"{state.value}\n")
        assert (await get(port, "/livez"))[0] == 200


async def test_grpc_health_says_the_same(operations):
    health, _ = operations
    answers = []

    for state in (State.WAITING, State.SERVING, State.DRAINING, State.SERVING):
        await health.enter(state)
        for service in ("", SERVICE):
            request = health_pb2.HealthCheckRequest(service=service)
            answer = await health.servicer.Check(request, None)
            answers.append(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    # There is no way back from draining.
    assert answers[::2] == ["SERVING"] * 4
    assert answers[1::2] == ["NOT_SERVING", "SERVING", "NOT_SERVING", "NOT_SERVING"]


async def test_scrape_shows_the_registry_as_it_is_now(operations):
    _, port = operations

    for expected in ("scrapes 1.0", "scrapes 2.0"):
        code, body = await get(port, "/metrics?name=x")
        assert code == 200
        assert expected in body.splitlines()


@pytest.mark.parametrize(
    "accept", ["text/plain; version=x", "application/openmetrics-text; version=x"]
)
async def test_scrape_that_accepts_nonsense_is_answered_in_plain_text(operations, accept):
    code, body = await ask(operations[1], f"GET /metrics HTTP/1.1\r\nAccept: {accept}")

    assert code == 200
    assert "scrapes 1.0" in body.splitlines()


@pytest.mark.parametrize(
    ("head", "code"),
    [("GET /other HTTP/1.1", 404), ("POST /metrics HTTP/1.1", 405), ("nonsense", 405)],
)
async def test_other_requests_are_answered_too(operations, head, code):
    assert (await ask(operations[1], head))[0] == code


async def test_endless_header_is_cut_off_and_the_port_goes_on(operations):
    _, port = operations
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 100_000)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()

    assert (await get(port, "/livez"))[0] == 200


async def test_port_in_use_is_named_with_the_option_to_change(operations, registry):
    _, port = operations
    second = OperationsServer(Health(), registry, lambda: None)

    with pytest.raises(StartupError, match=rf":{port} \(Address already in use\).*--operations"):
        await second.start("127.0.0.1", port)
