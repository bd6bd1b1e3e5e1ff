"""A tool, and where it runs: its environment, its folder and the router that it asks."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.clients.commands import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "demo_model" / "checkpoint"
ENVIRONMENTS = ROOT / ".venv-clients"
_INSTALL_SECONDS = 1800.0
_COMMAND_SECONDS = 300.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that asks an HTTP API.

    Attributes:
        name: Its package.
        version: The one that is installed.
        check: Runs it, and returns what was run and what came out, in pairs.
        extra: The part of the package that is needed.
        needs: What else is installed.
    """

    name: str
    version: str
    check: "Callable[[Site], Awaitable[list[tuple[str, str]]]]"
    extra: str = ""
    needs: tuple[str, ...] = ()

    @property
    def environment(self) -> Path:
        """The environment of its own."""
        return ENVIRONMENTS / self.name

    async def install(self) -> None:
        """Installs it, unless that was done.

        Raises:
            ToolFailedError: pip fails.
        """
        extra = f"[{self.extra}]" if self.extra else ""
        await install(self.environment, f"{self.name}{extra}=={self.version}", *self.needs)


async def install(environment: Path, *requirements: str) -> None:
    """Makes an environment that holds these packages, unless there is one.

    Raises:
        ToolFailedError: pip fails.
    """
    ready = environment / ".ready"
    if ready.exists() and ready.read_text() == "\n".join(requirements):
        return
    await asyncio.to_thread(environment.mkdir, parents=True, exist_ok=True)
    pip = (str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet")
    for command in ((sys.executable, "-m", "venv", "."), (*pip, *requirements)):
        await run(command, environment, _INSTALL_SECONDS, {})
    ready.write_text("\n".join(requirements))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a tool runs.

    Attributes:
        tool: The tool, which is installed.
        url: The router's HTTP address.
        model: The name of the model that it serves.
        folder: For what the tool reads and writes.
    """

    tool: Tool
    url: str
    model: str
    folder: Path

    async def command(self, name: str, *arguments: str, **environment: str) -> str:
        """Runs a command of the tool's environment and returns what it wrote.

        Raises:
            ToolFailedError: It failed or did not end in time.
        """
        programs = self.tool.environment / "bin"
        self.folder.mkdir(parents=True, exist_ok=True)
        variables = {
            **_OFFLINE,
            "HF_HOME": str(self.folder / "hub"),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            **environment,
        }
        return await run(
            (str(programs / name), *arguments), self.folder, _COMMAND_SECONDS, variables
        )

    def write(self, name: str, text: str) -> Path:
        """Writes a file that the tool reads."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path
