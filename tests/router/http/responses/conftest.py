"""One door for all tests of a module: a chat template takes time to start."""

import pytest
import pytest_asyncio

from tests.router.http.served_fleet import ServedFleet
from tests.router.http.serving import serving
from tests.router.text.tool_templates import QWEN3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_fleet():
    """The fleet of a module."""
    fleet = ServedFleet(template=QWEN3, max_logprobs=5)
    async with serving(fleet) as fleet.port:
        yield fleet


@pytest.fixture
def fleet(module_fleet):
    """A fleet of a model that thinks and calls, without traces of other tests."""
    module_fleet.reset()
    return module_fleet
