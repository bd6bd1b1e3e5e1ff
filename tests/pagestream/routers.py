"""A real router in front of a scripted fleet, and the commands that are run against it."""

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from protos.pagestream.router.v1 import router_pb2_grpc
from protos.wire import channel
from router.request.slow_readers import SlowReaders
from router.server.grpc_server import RouterServicer
from tests.fakes.command import run_command
from tests.fakes.terminal import on_terminal
from tests.router.http.scripted_fleet import ScriptedFleet
from tests.router.http.serving import opening

ROOT = Path(__file__).parents[2]
PAGESTREAM = (sys.executable, "-m", "pagestream")


@asynccontextmanager
async def scripted_router(script, fleet=None, **options):
    """Yields a fleet with `address` (gRPC) and `port` (HTTP) of a router in front of it."""
    fleet = fleet or ScriptedFleet(script)
    server = grpc.aio.server(options=channel.server_options())
    async with opening(fleet, **options) as (_, pipeline, fleet.port):
        servicer = RouterServicer(pipeline, fleet, SlowReaders(60.0))
        router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server)
        fleet.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield fleet
        finally:
            await server.stop(None)


async def run_pagestream(*arguments, text="", seconds=60.0):
    """Runs a command with a text on its standard input, and returns how it ended."""
    return await run_command((*PAGESTREAM, *arguments), ROOT, seconds, text)


def pagestream_on_terminal(*arguments, home, term="xterm-256color", size=(40, 120)):
    """Runs a command on a terminal."""
    environment = {"HOME": str(home), "TERM": term, "PATH": os.environ["PATH"]}
    return on_terminal((*PAGESTREAM, *arguments), ROOT, environment, size)
