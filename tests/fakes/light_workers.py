"""A router of several workers without what takes long to import; they listen and do nothing else.

    python -m tests.fakes.light_workers --engines fine.test:1 --workers 2 --port 0 …

Supervisor and connection are real. The name of the engine says what a worker does: `refuse.test`
cannot start, `crash.test` fails before it listens, `die.test` dies when it has listened, and
`hang.test` ignores SIGTERM.
"""

import asyncio
import os
import signal
import sys
import types

from prometheus_client import CollectorRegistry, Counter, Gauge

from router import __main__
from router.errors import StartupError
from router.server.worker_link import Listening, StateChange
from router.workers import worker, worker_process
from servicekit.listening import listen
from servicekit.process import exit_at_once


def run(config, link):
    """Stands in for `launch.run`."""
    name = config.engines[0].partition(".")[0]
    if name == "refuse":
        raise StartupError("--option is wrong")
    if name == "crash":
        raise ValueError("a fault of the router")
    return asyncio.run(serve(config, link, name))


async def serve(config, link, name):
    listeners = listen(config.host, config.port, "port", is_shared=True)
    registry = CollectorRegistry()
    retries = Counter("pagestream_router_retries", "10, and 1 at the end.", registry=registry)
    retries.inc(10)
    Gauge("pagestream_router_requests_in_flight", "Is 1.", registry=registry).set(1)
    ended = asyncio.Event()
    if name == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with asyncio.TaskGroup() as tasks:
        link.tell(Listening())
        link.tell(StateChange(is_ready=True))
        running = tasks.create_task(link.run(registry, lambda: None))
        if name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        await ended.wait()
        running.cancel()
    retries.inc()
    await link.close(registry)
    for listener in listeners:
        listener.close()
    return 0


def run_light_worker(*arguments, **options):
    """Stands in for `run_worker`, and does what it does with the other `run`."""
    sys.modules["router.launch"] = types.SimpleNamespace(run=run)
    worker_process.run_worker(*arguments, **options)


if __name__ == "__main__":
    # By its name, as the worker's process imports it.
    from tests.fakes import light_workers

    worker.run_worker = light_workers.run_light_worker
    exit_at_once(__main__.main(sys.argv[1:]))
