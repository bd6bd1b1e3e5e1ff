import asyncio
import socket

from prometheus_client import CollectorRegistry

from router.server.worker_link import Listening, WorkerLink


async def test_worker_whose_supervisor_has_gone_ends_as_it_would():
    ours, theirs = socket.socketpair()
    registry = CollectorRegistry()
    link = WorkerLink(ours, waits_until_ready=False)
    answering = asyncio.create_task(link.run(registry, lambda: None))
    await asyncio.sleep(0)
    theirs.close()
    async with asyncio.timeout(10):
        await answering

    for _ in range(3):
        link.tell(Listening())
        await asyncio.sleep(0)
    await link.close(registry)

    # Otherwise the end of the process does it.
    link._writer.close()
    link._last.close()
