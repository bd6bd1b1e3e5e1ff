"""What a chat prints; what the model says is shown and never obeyed."""

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from pagestream.visible import visible


class Printer:
    """Prints answers as they stream, notes and errors.

    Args:
        console: A terminal, which may know no colours.
        shows_reasoning: Whether the reasoning is printed, too.
    """

    def __init__(self, console: Console, *, shows_reasoning: bool) -> None:
        self._console = console
        self._shows_reasoning = shows_reasoning
        self._is_reasoning = False
        self._last = "\n"

    def show(self, text: str, reasoning: str) -> None:
        """Prints more of an answer; what has been reasoned comes first."""
        if reasoning and self._shows_reasoning:
            if not self._is_reasoning:
                self._is_reasoning = True
                self._mark("[reasoning]\n")
            self._write(self._styled(visible(reasoning), Style(dim=True)), reasoning)
        if text:
            if self._is_reasoning:
                self._is_reasoning = False
                self._write("\n" if self._last == "\n" else "\n\n", "\n")
                self._mark("[answer]\n")
            self._write(visible(text), text)

    def end_answer(self) -> None:
        """Ends the line of an answer, if there is one."""
        self._is_reasoning = False
        if self._last != "\n":
            self._write("\n", "\n")

    def note(self, text: str) -> None:
        """Prints a line that is no answer."""
        self._write(self._styled(text, Style(dim=True)) + "\n", "\n")

    def error(self, text: str) -> None:
        """Prints a line that says what went wrong."""
        self._write(self._styled(f"error: {text}", Style(color="red")) + "\n", "\n")

    def _mark(self, text: str) -> None:
        """Names a part of an answer where nothing else tells it from the others."""
        if self._console.color_system is None:
            self._write(text, text)

    def _styled(self, text: str, style: Style) -> str:
        # Not by way of the console's layout, which would wrap words and turn tabs into spaces.
        if self._console.color_system is None:
            return text
        # The variable NO_COLOR still allows what is dim.
        allowed = style.without_color if self._console.no_color else style
        return allowed.render(text, color_system=ColorSystem.STANDARD)

    def _write(self, text: str, plain: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
        self._last = plain[-1]
