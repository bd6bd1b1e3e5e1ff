"""Makes the pictures of docs/terminal.md: `python -m benchmarks.terminal_pictures docs`.

Starts two engines with the demo model and a router, runs the three commands on a terminal against
them, and draws what they printed as SVG.
"""

import asyncio
import io
import os
import re
import shlex
import sys
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

from examples.demo.services import Service, Services
from tests.fakes.terminal import Terminal, on_terminal

_ROOT = Path(__file__).parents[1]
_CHECKPOINT = "demo_model/checkpoint"
_ENGINE = ["engine_service", "--model", _CHECKPOINT, "--served-model-name", "demo"]
_CPU = ["--device", "cpu", "--cpu-threads", "1", "--num-blocks", "200"]
_READY_SECONDS = 120.0
_LOAD_SECONDS = 12
_COLUMNS = 104
_SIZE = (50, _COLUMNS)
_FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
_QUESTIONS = (
    "/set temperature 0.6",
    "introduce yourself",
    "list all prime numbers within 50",
    "/reset",
)
# Not drawn: that a terminal shall mark what is pasted, and the end of a line twice.
_UNSEEN = re.compile(r"\x1b\[\?2004[hl]\r?|\r(?=\r?\n)")


def _terminal(home: str, command: str) -> AbstractAsyncContextManager[Terminal]:
    environment = {"HOME": home, "TERM": "xterm-256color", "PATH": os.environ["PATH"]}
    return on_terminal(("sh", "-c", command), _ROOT, environment, _SIZE)


def _pagestream(arguments: str) -> str:
    return f"exec {shlex.quote(sys.executable)} -m pagestream {arguments}"


async def _output(home: str, arguments: str) -> str:
    """Returns what a command prints; its progress is left out."""
    async with _terminal(home, f"{_pagestream(arguments)} 2>/dev/null") as terminal:
        await terminal.exit_code()
        return terminal.output


async def _chat(home: str, arguments: str) -> str:
    async with _terminal(home, _pagestream(arguments)) as terminal:
        for question in _QUESTIONS:
            await terminal.expect("> ")
            terminal.type(f"{question}\r")
        await terminal.expect("forgotten")
        await terminal.expect("> ")
        terminal.type("\x04")
        await terminal.exit_code()
        return terminal.output


def _draw(path: Path, command: str, output: str) -> None:
    """Draws a terminal with a command and its output; the picture loads no fonts from elsewhere."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO())
    console.print(Text(f"$ pagestream {command}", "bold"))
    for line in _UNSEEN.sub("", output).replace("\r\n", "\n").strip().split("\n"):
        console.print(Text.from_ansi(line))
    console.save_svg(
        str(path),
        title="pagestream",
        code_format=_FONTS.sub("", CONSOLE_SVG_FORMAT),
        unique_id=path.stem,
    )


async def _draw_all(folder: Path, router: Service, engines: list[Service], home: str) -> None:
    operations = ",".join(f"{one.address}={one.operations_address}" for one in engines)
    bench = f"bench {router.address} --rate 3 --seconds {_LOAD_SECONDS}"
    bench += " --prompt-tokens 64-256 --output-tokens 8-32 --prefix-share 0.5"
    top = f"top {router.address}"
    where = f"--router-operations={router.address}={router.operations_address}"
    once = f"--once --interval 6 {where} --engine-operations={operations}"
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(_output(home, bench))
        await asyncio.sleep(_LOAD_SECONDS / 4)
        _draw(folder / "terminal_top.svg", top, await _output(home, f"{top} {once}"))
    _draw(folder / "terminal_bench.svg", bench, load.result())
    chat = f"chat {router.address}"
    _draw(folder / "terminal_chat.svg", chat, await _chat(home, f"{chat} --no-history"))


async def _main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        async with Services(Path(home) / "logs") as services:
            engines = [services.start(f"engine-{i}", [*_ENGINE, *_CPU]) for i in range(2)]
            await services.wait_ready(engines, _READY_SECONDS, lambda *_: None)
            addresses = ",".join(engine.address for engine in engines)
            router = services.start("router", ["router", "--engines", addresses])
            await services.wait_ready([router], _READY_SECONDS, lambda *_: None)
            await _draw_all(folder, router, engines, home)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
