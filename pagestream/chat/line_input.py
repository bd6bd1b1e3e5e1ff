"""Messages from the keyboard, with the editing and the history of readline."""

import contextlib
from pathlib import Path

from protos.wire.limits import MAX_PROMPT_BYTES

_PROMPT = "> "
_MORE = ". "
_QUOTES = '"""'
_MAX_HISTORY_LINES = 1000


class LineInput:
    """Reads messages; keeps what was typed for the next time at the end of the block.

    Args:
        keeps_history: Whether typed lines are read from a file in the home folder and kept there.
    """

    def __init__(self, *, keeps_history: bool) -> None:
        self._path: Path | None = None
        # A user without a home, as in some containers.
        with contextlib.suppress(RuntimeError):
            self._path = Path.home() / ".pagestream_history" if keeps_history else None

    def __enter__(self) -> "LineInput":
        # Not above: the module takes over `input` as soon as it is imported.
        import readline

        self._readline = readline
        readline.set_history_length(_MAX_HISTORY_LINES)
        if self._path is not None:
            # There is none at the first start.
            with contextlib.suppress(OSError):
                readline.read_history_file(self._path)
        return self

    def __exit__(self, *error: object) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.touch(mode=0o600)
                self._readline.write_history_file(self._path)

    def read(self) -> str:
        r"""Returns the next message, without white space around it.

        A message that begins with three quotation marks goes on until the next three.

        Raises:
            EOFError: There is no more.
            ValueError: It is too long or no UTF-8.
        """
        text = input(_PROMPT).strip()
        if text.startswith(_QUOTES):
            text = self._read_quoted(text.removeprefix(_QUOTES))
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise ValueError("the message is not UTF-8") from None
        if size > MAX_PROMPT_BYTES:
            raise ValueError(f"the message has {size} bytes, more than {MAX_PROMPT_BYTES}")
        return text

    def _read_quoted(self, first: str) -> str:
        lines = [first]
        size = 0
        while _QUOTES not in lines[-1]:
            lines.append(input(_MORE))
            size += len(lines[-1]) + 1
            if size > MAX_PROMPT_BYTES:
                raise ValueError(f"the message has more than {MAX_PROMPT_BYTES} bytes")
        lines[-1] = lines[-1].partition(_QUOTES)[0]
        return "\n".join(lines).strip()
