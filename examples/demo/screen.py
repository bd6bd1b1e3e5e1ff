"""What the demo shows while it runs: live on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.demo.load import Answer
from examples.demo.services import Service

_PLAIN_SECONDS = 1.0
_ANSWER_CHARACTERS = 600


class Screen:
    """Shows the services' start, then the answers' progress and one answer as it streams."""

    def __init__(self, console: Console, answer_title: str) -> None:
        """Shows on `console`, and the answer under that title."""
        self._console = console
        self._answer_title = answer_title
        self._services: dict[str, str] = {}
        self._answers: Sequence[Answer] = ()
        self._num_expected_tokens = 1
        self._started = time.monotonic()
        self._last_line = self._started
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=10, transient=True
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(Text(text))

    def show_service(self, service: Service, state: str) -> None:
        """Shows the latest of a service that starts."""
        if state == "ready":
            seconds = time.monotonic() - self._started
            self._services.pop(service.name, None)
            self.say(f"{service.name} is ready on {service.address} after {seconds:.1f} s")
        else:
            self._services[service.name] = state

    def expect(self, num_tokens: int) -> None:
        """Says how many tokens there will be at most."""
        self._num_expected_tokens = num_tokens

    def show_answers(self, answers: Sequence[Answer]) -> None:
        """Shows how far all answers are."""
        self._answers = answers
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > _PLAIN_SECONDS:
            self._last_line = now
            self.say(self._progress_line())

    def _progress_line(self) -> str:
        num_finished = sum(bool(answer.finish_reason) for answer in self._answers)
        num_tokens = sum(answer.num_tokens for answer in self._answers)
        return f"{num_finished} of {len(self._answers)} answers complete, {num_tokens:,} tokens"

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._services:
            table = Table.grid(padding=(0, 2))
            for name, state in self._services.items():
                line = Text(printable(state), overflow="ellipsis", no_wrap=True, style="dim")
                table.add_row(Text(name), line)
            parts.append(table)
        if self._answers:
            num_tokens = sum(answer.num_tokens for answer in self._answers)
            parts.append(Text(self._progress_line()))
            parts.append(ProgressBar(total=self._num_expected_tokens, completed=num_tokens))
            parts.append(answer_panel(self._answers[0], self._answer_title))
        return Group(*parts)


def answer_panel(answer: Answer, title: str) -> Panel:
    """Returns the end of one answer in a frame with a title."""
    text = printable(answer.text)
    if len(text) > _ANSWER_CHARACTERS:
        text = "…" + text[-_ANSWER_CHARACTERS:]
    return Panel(Text(text), title=title, title_align="left")


def printable(text: str) -> str:
    """Replaces what a terminal would obey instead of show."""
    return "".join(one if one.isprintable() else " " for one in text)
