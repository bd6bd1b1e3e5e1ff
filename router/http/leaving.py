"""Notices that a client has left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive


@asynccontextmanager
async def until_client_leaves(receive: Receive) -> AsyncIterator[None]:
    """Ends the block when the client closes its connection; the body must have been read.

    Raises:
        ClientDisconnect: The client has left.
    """
    limit = asyncio.timeout(None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        limit.reschedule(asyncio.get_running_loop().time())

    # Not in a group, which would wrap the errors of the block.
    watching = asyncio.get_running_loop().create_task(watch(), name="http client")
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise ClientDisconnect from None
    finally:
        watching.cancel()
