"""One door for all tests of a module: a chat template takes time to start."""

import pytest
import pytest_asyncio

from tests.router.http.chat.chats import ChatFleet
from tests.router.http.serving import serving
from tests.router.text.tool_templates import QWEN3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_fleet():
    """The fleet of a module."""
    fleet = ChatFleet()
    async with serving(fleet) as fleet.port:
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_tool_fleet():
    """The fleet of a module that calls tools."""
    fleet = ChatFleet(template=QWEN3)
    async with serving(fleet) as fleet.port:
        yield fleet


@pytest.fixture
def fleet(module_fleet):
    """A fleet of a plain model, without traces of other tests."""
    module_fleet.reset()
    return module_fleet


@pytest.fixture
def tool_fleet(module_tool_fleet):
    """A fleet of a model that thinks and calls tools, as Qwen3 does."""
    module_tool_fleet.reset()
    return module_tool_fleet
