"""What `pagestream serve` shows: on a terminal the state of each service, else lines.

The log of all services goes to standard error, each line with the service's name before it. On a
terminal, what is only progress is shown in place until all are ready. Standard output has nothing
but where it serves.
"""

import re
import shutil
import sys
import time
from collections.abc import Sequence

from pagestream.environment import variables
from pagestream.serve.plan import Plan, Service
from servicekit.line_writer import LineWriter

_ENTRY = re.compile(r"\d{4}-\d\d-\d\d \S+ (?P<level>[A-Z]+) (?:worker=\d+ )?\S+ (?P<message>.*)")
_CALM = ("DEBUG", "INFO")
_NUM_CALM_LINES = 3
_REASON = re.compile(r"(engine_service|router): ")
"""What a service begins its last line with when it cannot start."""
_PASSING_SECONDS = 10.0
"""How often a line that another is to replace is written where nothing can be replaced."""
_FLUSH_SECONDS = 2.0


class Screen:
    """Standard error and standard output of the command."""

    def __init__(self, plan: Plan) -> None:
        """Shows nothing yet."""
        self._width = max(len(service.name) for service in plan.services)
        self._router = plan.router
        self._is_live = sys.stderr.isatty() and variables().get("TERM") != "dumb"
        self._is_starting = True
        self._states = {service.name: "starting" for service in plan.services}
        self._num_drawn = 0
        self._drawn_at = 0
        self._errors = LineWriter(2)
        self._output = LineWriter(1)
        self._passed_at: dict[str, float] = {}
        self._started_at = time.monotonic()
        self._draw()

    def show_line(self, service: Service, text: str, is_passing: bool) -> None:
        """Shows a line of a service's output."""
        # The command says so itself when the service has ended.
        if self._is_starting and _REASON.match(text):
            return
        entry = _ENTRY.fullmatch(text)
        if self._is_live and self._is_starting:
            is_progress = is_passing or (entry is not None and self._is_progress(service, entry))
            if service.name in self._states and is_progress:
                self._states[service.name] = self._state(
                    service, entry["message"] if entry else text
                )
            if is_progress:
                self._draw()
                return
        elif is_passing and not self._is_due(service.name):
            return
        self._write(f"{service.name:{self._width}} | {text}")

    def show_ready(self, service: Service) -> None:
        """Shows that a service is ready."""
        self._states.pop(service.name, None)
        place = f" on {service.place}" if service.place else ""
        self.say(f"{service.name} is ready{place} after {self._seconds():.1f} s")

    def tick(self) -> None:
        """Shows how long all have been starting; call it some times a second."""
        if int(self._seconds()) != self._drawn_at:
            self._draw()

    def say(self, text: str) -> None:
        """Shows a line of the command itself."""
        self._write(f"{'serve':{self._width}} | {text}" if not self._is_live else text)

    def announce(self, text: str) -> None:
        """Writes to standard output where it serves; from here on, all lines are shown."""
        self.end_progress()
        self._output.write(text)

    def end_progress(self) -> None:
        """Ends what is shown in place."""
        self._erase()
        self._is_starting = False
        self._errors.flush(_FLUSH_SECONDS)

    def close(self) -> None:
        """Waits shortly until all is written."""
        self.end_progress()
        self._output.flush(_FLUSH_SECONDS)

    def _seconds(self) -> float:
        return time.monotonic() - self._started_at

    def _state(self, service: Service, message: str) -> str:
        return "waits for the engines" if service is self._router else message

    def _is_progress(self, service: Service, entry: re.Match[str]) -> bool:
        # The router warns of each engine that has not loaded its model yet.
        is_expected = service is self._router and entry["level"] == "WARNING"
        return is_expected or entry["level"] in _CALM

    def _is_due(self, name: str) -> bool:
        now = time.monotonic()
        if now - self._passed_at.get(name, -_PASSING_SECONDS) < _PASSING_SECONDS:
            return False
        self._passed_at[name] = now
        return True

    def _write(self, line: str) -> None:
        self._erase()
        self._errors.write(f"{line}\n")
        self._draw()

    def _erase(self) -> None:
        if self._num_drawn:
            self._errors.write(f"\x1b[{self._num_drawn}F\x1b[J")
            self._num_drawn = 0

    def _draw(self) -> None:
        if not (self._is_live and self._is_starting):
            return
        self._erase()
        columns, rows = shutil.get_terminal_size()
        self._drawn_at = int(self._seconds())
        lines = [
            f"{name:{self._width}} {self._drawn_at:5} s  {state}"
            for name, state in self._states.items()
        ]
        # What has scrolled away cannot be replaced.
        lines = [line[: columns - 1] for line in lines[: rows - 1]]
        self._errors.write("".join(f"{line}\n" for line in lines))
        self._num_drawn = len(lines)


def reason(lines: Sequence[str]) -> str:
    """Returns why a service cannot start, which it has said in one of its last lines."""
    found = [line for line in lines if _REASON.match(line)]
    return found[-1].partition(": ")[2] if found else lines[-1]


def telling(lines: Sequence[str]) -> list[str]:
    """Returns the lines of a log that may tell why a service has ended; the last ones if none."""
    entries = [(line, _ENTRY.fullmatch(line)) for line in lines]
    found = [line for line, entry in entries if entry is None or entry["level"] not in _CALM]
    return found or list(lines[-_NUM_CALM_LINES:])


def announcement(plan: Plan, model: str, curl: str) -> str:
    """Returns where a fleet serves, for a person.

    Args:
        plan: What runs.
        model: The name that clients use.
        curl: A command to try it with.
    """
    count = f"{len(plan.engines)} engine{'' if len(plan.engines) == 1 else 's'}"
    scheme = "http" if plan.tls_cert is None else "https"
    rows = [
        ("HTTP, OpenAI and Anthropic", f"{scheme}://{plan.http_address}/v1"),
        ("gRPC", plan.router.address),
        ("metrics and health", _metrics(plan.router)),
    ]
    rows += [
        (
            f"{engine.name} on {engine.place}",
            f"{engine.address}, {_metrics(engine)}",
        )
        for engine in plan.engines
    ]
    width = max(len(title) for title, _ in rows)
    table = "".join(f"  {title:{width}}  {where}\n" for title, where in rows)
    return f"\nready: {model}, {count}\n\n{table}\n{curl}\n{_top(plan)}\nCtrl-C ends all.\n\n"


def _top(plan: Plan) -> str:
    """Returns a command that watches the fleet; nothing where it needs certificates."""
    if plan.tls_cert is not None or plan.router.operations_tls_cert is not None:
        return ""
    engines = ",".join(f"{one.address}={one.operations_address}" for one in plan.engines)
    router = f"{plan.router.address}={plan.router.operations_address}"
    return (
        f"pagestream top {plan.router.address} --router-operations {router} "
        f"--engine-operations {engines}\n"
    )


def _metrics(service: Service) -> str:
    scheme = "http" if service.operations_tls_cert is None else "https"
    return f"{scheme}://{service.operations_address}/metrics"
