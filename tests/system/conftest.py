import asyncio

import pytest

from tests.system.test_failover import run_all, two_engines


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The streams of two engines of a single rank to which nothing happens."""

    async def run_undisturbed():
        async with two_engines(tmp_path_factory.mktemp("undisturbed")) as fleet:
            return await run_all(fleet)

    return asyncio.run(run_undisturbed())
