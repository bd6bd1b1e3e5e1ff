"""Runs tools that ask OpenAI's API, unchanged, against a router with the demo model.

    python -m tests.clients [TOOL ...]

Each is installed in an environment of its own below .venv-clients. What they write is in
.demo/clients.
"""

import argparse
import asyncio
import re
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.demo.errors import DemoFailedError
from examples.demo.services import HOST, Services
from tests.clients.commands import ToolFailedError
from tests.clients.site import CHECKPOINT, ROOT, Site, Tool
from tests.clients.tools import TOOLS

FOLDER = ROOT / ".demo" / "clients"
START_SECONDS = 120.0


def main() -> int:
    """Runs the tools and prints the table; returns 0 if all did what they should."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m tests.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [tool.name for tool in TOOLS]
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"any of {', '.join(names)}")
    given = parser.parse_args().tools or names
    if unknown := set(given).difference(names):
        parser.error(f"unknown tool: {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    console = Console(highlight=False)
    try:
        return asyncio.run(_run([tool for tool in TOOLS if tool.name in given], console))
    except (DemoFailedError, ToolFailedError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 1


async def _run(tools: Sequence[Tool], console: Console) -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for tool in tools:
        console.print(f"{tool.name} {tool.version} is being installed")
        await tool.install()
    table = Table("tool", "version", "what was run", "what came out", show_lines=True)
    num_failed = 0
    async with Services(FOLDER / "services") as services:
        url = await _serve(services)
        for tool in tools:
            console.print(f"{tool.name} runs")
            site = Site(tool=tool, url=url, model=CHECKPOINT.name, folder=FOLDER / tool.name)
            try:
                rows = await tool.check(site)
            except ToolFailedError as error:
                num_failed += 1
                rows = [("", f"FAILED: {error}")]
            for row in rows:
                table.add_row(
                    *(Text(cell, overflow="fold") for cell in (tool.name, tool.version, *row))
                )
            services.check()
    console.print(table)
    return 1 if num_failed else 0


async def _serve(services: Services) -> str:
    """Starts an engine and a router, and returns the router's HTTP address."""
    # On a busy machine, threads that wait for each other are slower than one.
    options = ("--device", "cpu", "--cpu-threads", "1", "--num-blocks", "512")
    engine = services.start("engine", ["engine_service", "--model", str(CHECKPOINT), *options])
    router = services.start("router", ["router", "--engines", engine.address, "--http-port", "0"])
    await services.wait_ready([engine, router], START_SECONDS, lambda service, state: None)
    found = re.search(r" http_port=(\d+)", router.log_path.read_text())
    assert found
    return f"http://{HOST}:{found[1]}"


if __name__ == "__main__":
    sys.exit(main())
