"""The log of a service: lines on standard error that cannot be forged and never block.

Quoted content is escaped here, once, after the message is formatted. A traceback keeps its lines,
indented, so that none looks like an entry. Logging never waits for the reader of the log. Lines
that are not read in time are dropped, and the log says how many.
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
"""Per line. A pipe takes 4,096 bytes at once; longer writes of several processes may mix."""
_MAX_TRACEBACK_LINES = 200
_FLUSH_SECONDS = 2.0
_BURST = 100
_BURST_SECONDS = 10.0
"""Warnings and errors of one place in the code that are logged in so many seconds, at most."""

_stderr = LineWriter(None if sys.__stderr__ is None else 2)
_uncaught = logging.getLogger("uncaught")


def set_up_logging(level: str | int, label: str = "") -> None:
    """Sends this process's log to standard error, including the traceback of a crash.

    Args:
        level: The lowest level that is logged, such as "info" or `logging.INFO`.
        label: What tells this process's entries from those of others, such as "worker=3".
    """
    _take_over_libraries()
    level = level.upper() if isinstance(level, str) else level
    logging.basicConfig(level=level, handlers=[LogHandler(_stderr, label)], force=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_of
    sys.unraisablehook = _log_uncaught_of


def print_error(program: str, error: Exception) -> None:
    """Writes one line to standard error, after everything already logged."""
    _stderr.write(_line(f"{program}: {error}") + "\n")


def flush_log(seconds: float = _FLUSH_SECONDS) -> None:
    """Waits up to `seconds` until everything logged is written.

    Call it before `os._exit`; any other exit does it automatically.
    """
    _stderr.flush(seconds)


atexit.register(flush_log)


class LineFormatter(logging.Formatter):
    """Formats an entry as one line, truncated and escaped; a traceback follows, indented.

    Args:
        label: What stands before the logger's name, if anything.
    """

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self.label = label and f"{label} "

    def format(self, record: logging.LogRecord) -> str:
        """Returns the lines of an entry, without the final newline."""
        time_ = self.formatTime(record)
        name = self.label + record.name
        lines = [_line(f"{time_} {record.levelname} {name} {record.getMessage()}")]
        if record.exc_info and record.exc_info[0]:
            lines += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            lines += _indented(record.stack_info)
        return "\n".join(lines)


class LogHandler(logging.Handler):
    """Passes entries to a writer; warnings that one place keeps repeating are only counted.

    Args:
        writer: Takes the lines.
        label: As in `set_up_logging`.
    """

    formatter: LineFormatter

    def __init__(self, writer: LineWriter, label: str = "") -> None:
        super().__init__()
        self.setFormatter(LineFormatter(label))
        self._writer = writer
        self._limits: dict[tuple[str, int], RateLimit] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Logs one entry."""
        try:
            num_held = self._num_held(record)
            if num_held is None:
                return
            if num_held:
                self._writer.write(self._repeated(record, num_held))
            self._writer.write(self.format(record) + "\n")
        # An error in a logging call must not stop its caller.
        except Exception as error:
            where = f"{record.pathname}:{record.lineno}"
            print_error("log", ValueError(f"the entry of {where} cannot be formatted: {error!r}"))

    def _num_held(self, record: logging.LogRecord) -> int | None:
        if record.levelno < logging.WARNING:
            return 0
        place = record.pathname, record.lineno
        limit = self._limits.get(place)
        if limit is None:
            limit = self._limits[place] = RateLimit(_BURST, _BURST_SECONDS)
        return limit.take(time.monotonic())

    def _repeated(self, record: logging.LogRecord, number: int) -> str:
        time_ = self.formatter.formatTime(record)
        return f"{time_} {self.formatter.label}{number} more entries like the next one\n"


def _take_over_libraries() -> None:
    """Routes the logs of libraries through this one."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            for handler in list(logger.handlers):
                if isinstance(handler, logging.StreamHandler):
                    logger.removeHandler(handler)
                    logger.propagate = True


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None
) -> None:
    # Raised by a thread that exits.
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
    """Returns a text, truncated and escaped."""
    content = escape(text[:_MAX_LINE_BYTES]).encode()
    if len(content) <= _MAX_LINE_BYTES and len(text) <= _MAX_LINE_BYTES:
        return content.decode()
    return f"{content[:_MAX_LINE_BYTES].decode(errors='ignore')}… (of {len(text)} characters)"
