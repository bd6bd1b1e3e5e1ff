"""When something fails under way, the demo tells the cause in a sentence."""

import io

import grpc
import pytest
from rich.console import Console

from examples.demo import run, services
from examples.demo.command import parse
from examples.demo.errors import DemoFailedError, ServiceFailedError
from examples.demo.figures import EngineFigures
from examples.demo.screen import Screen
from examples.demo.services import Service, Services
from tests.examples.test_demo_load import ScriptedRouter, address_of
from tests.examples.test_demo_services import STAND_IN


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(services, "_EXIT_SECONDS", 0.0)


@pytest.fixture
def send_to(tmp_path):
    """Sends four chats to a router that is not the demo's own."""

    async def send(services, address, *figures):
        router = Service(
            name="router", address=address, operations_address="", log_path=tmp_path, process=None
        )
        screen = Screen(Console(file=io.StringIO()), "one answer")
        return await run._send(services, router, parse(["--requests", "4"]), list(figures), screen)

    return send


FULL = ScriptedRouter(error=(grpc.StatusCode.RESOURCE_EXHAUSTED, "all engines are full"))


async def test_failed_request_is_one_sentence(tmp_path, send_to):
    async with Services(tmp_path) as services, address_of(FULL) as address:
        with pytest.raises(
            DemoFailedError, match=r"^a request failed: RESOURCE_EXHAUSTED: all engines are full$"
        ):
            await send_to(services, address)


async def test_unreadable_metrics_end_the_demo_with_one_sentence(tmp_path, send_to):
    async with Services(tmp_path) as services, address_of(ScriptedRouter()) as address:
        silent = services.start("engine-0", [STAND_IN, "silent"])
        with pytest.raises(DemoFailedError, match=r"^the metrics of engine-0 cannot be read: "):
            await send_to(services, address, EngineFigures(service=silent, gpus=()))


async def test_service_that_has_ended_is_told_rather_than_what_followed(tmp_path, send_to):
    async with Services(tmp_path) as services, address_of(FULL) as address:
        services.start("engine-0", [STAND_IN, "fails"]).process.wait(timeout=30)
        with pytest.raises(ServiceFailedError, match="engine-0 ended with exit code 2"):
            await send_to(services, address)
