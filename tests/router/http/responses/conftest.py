"""One door for all tests of a module: a chat template takes time to start."""

import pytest
import pytest_asyncio

from tests.router.http.responses.asking import ThinkingFleet
from tests.router.http.serving import serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_fleet():
    """The fleet of a module."""
    fleet = ThinkingFleet()
    async with serving(fleet) as fleet.port:
        yield fleet


@pytest.fixture
def fleet(module_fleet):
    """A fleet of a model that thinks and calls, without traces of other tests."""
    module_fleet.reset()
    return module_fleet
