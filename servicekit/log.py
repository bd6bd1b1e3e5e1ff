"""The log of a service: lines on standard error that nobody can forge and nobody waits for.

Whatever a line quotes is escaped here, once, after the message was formatted. A traceback keeps
its lines, indented, so that none of them looks like an entry. The thread that logs never waits for
the reader of the log; what is not read in time is dropped, and counted in the log.
"""

import atexit
import logging
import sys
import threading
import time
from types import TracebackType

from protos.wire.printable import escape
from servicekit.line_writer import LineWriter
from servicekit.rate_limit import RateLimit

_MAX_LINE_BYTES = 4_000
"""Of one line. A pipe takes 4,096 bytes at once, or else mixes lines of several processes."""
_MAX_TRACEBACK_LINES = 200
_FLUSH_SECONDS = 2.0
_BURST = 100
_BURST_SECONDS = 10.0
"""Warnings and errors of one place in the code that are logged in so many seconds, at most."""

_stderr = LineWriter(None if sys.__stderr__ is None else 2)
_uncaught = logging.getLogger("uncaught")


def set_up_logging(level: str) -> None:
    """Sends what this process logs to standard error, tracebacks of its own end included.

    Args:
        level: The least severe that is logged, such as "info".
    """
    _take_over_libraries()
    logging.basicConfig(level=level.upper(), handlers=[LogHandler(_stderr)], force=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_of
    sys.unraisablehook = _log_uncaught_of


def print_error(program: str, error: Exception) -> None:
    """Writes one line on standard error, behind all that was logged."""
    _stderr.write(_line(f"{program}: {error}") + "\n")


def flush_log(seconds: float = _FLUSH_SECONDS) -> None:
    """Waits until all that was logged is written, but no longer than so many seconds.

    An exit by `os._exit` needs it; any other does it by itself.
    """
    _stderr.flush(seconds)


atexit.register(flush_log)


class LineFormatter(logging.Formatter):
    """One line an entry, cut and escaped; a traceback follows on lines that are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the lines of an entry, without the end of the last."""
        time_ = self.formatTime(record)
        lines = [_line(f"{time_} {record.levelname} {record.name} {record.getMessage()}")]
        if record.exc_info and record.exc_info[0]:
            lines += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            lines += _indented(record.stack_info)
        return "\n".join(lines)


class LogHandler(logging.Handler):
    """Gives entries to a writer; warnings that one place repeats without end are counted.

    Args:
        writer: Takes the lines.
    """

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._writer = writer
        self._limits: dict[tuple[str, int], RateLimit] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one entry."""
        try:
            num_held = self._num_held(record)
            if num_held is None:
                return
            if num_held:
                self._writer.write(self._repeated(record, num_held))
            self._writer.write(self.format(record) + "\n")
        # A mistake of whoever logs must not end what it was doing.
        except Exception as error:
            where = f"{record.pathname}:{record.lineno}"
            print_error("log", ValueError(f"an entry of {where} cannot be written: {error!r}"))

    def _num_held(self, record: logging.LogRecord) -> int | None:
        if record.levelno < logging.WARNING:
            return 0
        place = record.pathname, record.lineno
        limit = self._limits.get(place)
        if limit is None:
            limit = self._limits[place] = RateLimit(_BURST, _BURST_SECONDS)
        return limit.take(time.monotonic())

    def _repeated(self, record: logging.LogRecord, number: int) -> str:
        return f"{self.formatter.formatTime(record)} {number} more entries like the next one\n"  # type: ignore[union-attr]


def _take_over_libraries() -> None:
    """Makes libraries that log by themselves do so through us."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            for handler in list(logger.handlers):
                if isinstance(handler, logging.StreamHandler):
                    logger.removeHandler(handler)
                    logger.propagate = True


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None
) -> None:
    # A thread that exits says so with this.
    if kind is not SystemExit:
        _uncaught.critical("%s", kind.__name__, exc_info=(kind, error or kind(), traceback))


def _log_uncaught_of(hook: "threading.ExceptHookArgs | sys.UnraisableHookArgs") -> None:
    _log_uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def _indented(text: str) -> list[str]:
    lines = text.split("\n")
    if len(lines) > _MAX_TRACEBACK_LINES:
        half = _MAX_TRACEBACK_LINES // 2
        lines[half:-half] = [f"… {len(lines) - 2 * half} lines …"]
    return [_line(f"  {line}") for line in lines]


def _line(text: str) -> str:
    """Returns a text, cut and escaped."""
    content = escape(text[:_MAX_LINE_BYTES]).encode()
    if len(content) <= _MAX_LINE_BYTES and len(text) <= _MAX_LINE_BYTES:
        return content.decode()
    return f"{content[:_MAX_LINE_BYTES].decode(errors='ignore')}… (of {len(text)} characters)"
