"""The guide's pages: what they run, what they say was printed, which code they show."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "guide"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
_PRINTED = re.compile(
    r"^```sh\npython -m (examples\.guide\.\w+)\n```\n\n```text\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Page:
    """A page of docs/guide."""

    path: Path

    @property
    def text(self) -> str:
        """All of the page."""
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The page without its blocks of code, commands and output."""
        return _BLOCK.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        """Returns the blocks in a language."""
        return [text for name, text in _BLOCK.findall(self.text) if name == language]

    def printed(self) -> dict[str, str]:
        """Returns what the page says that modules print, by module."""
        return {match[1]: match["text"] for match in _PRINTED.finditer(self.text)}

    def rewrite(self, run: Callable[[str], str]) -> None:
        """Replaces what modules print by what `run` returns for each."""

        def replace(match: re.Match[str]) -> str:
            begin = match.start("text") - match.start()
            return f"{match[0][:begin]}{run(match[1])}```"

        self.path.write_text(_PRINTED.sub(replace, self.text), encoding="utf-8")


def pages() -> Iterator[Page]:
    """Yields all pages, in their order."""
    yield from map(Page, sorted(FOLDER.glob("*.md")))
