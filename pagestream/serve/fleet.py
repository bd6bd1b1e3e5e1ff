"""Runs the services of a plan, and ends all of them in order: the router first, which drains."""

import asyncio
import contextlib
import signal
from collections.abc import Mapping

from pagestream.serve.child import Child
from pagestream.serve.first_request import (
    closed_curl_command,
    curl_command,
    is_ready,
    model_name,
)
from pagestream.serve.plan import Plan
from pagestream.serve.screen import Screen, announcement, reason, telling
from servicekit.errors import StartupError
from servicekit.process import exit_at_once
from servicekit.signals import Stopped, end_signals

_POLL_SECONDS = 0.2
_LATE_SECONDS = 5.0
"""Time beyond the drain grace after which a service that has not ended is killed."""
_EXIT_FAILED = 1
_EXIT_NOT_STARTED = 2
"""Of a service that an operator has to start in another way, and so of this command."""
_NUM_LAST_LINES = 10


class Fleet:
    """A router and its engines, as processes of their own."""

    def __init__(self, plan: Plan, environment: Mapping[str, str]) -> None:
        """Starts nothing yet.

        Args:
            plan: What to run.
            environment: Variables of all services.
        """
        self._plan = plan
        self._environment = environment
        self._screen = Screen(plan)
        self._children = [Child(one, self._screen.show_line) for one in plan.services]
        *self._engines, self._router = self._children
        self._is_ready = False
        self._is_ending = False
        self._lost: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._signals = end_signals(self._end_at_once)

    async def run(self) -> int:
        """Runs all until a signal comes or one ends by itself; returns the exit code.

        The first signal ends all in order. A second one ends them at once.

        Raises:
            StartupError: The system can start no more processes.
        """
        lost = None
        try:
            self._start()
            async with asyncio.TaskGroup() as tasks:
                for child in self._children:
                    tasks.create_task(self._keep(child))
                announcing = tasks.create_task(self._announce())
                try:
                    async with self._signals.interruption():
                        lost = await self._lost
                        self._explain(lost)
                except Stopped:
                    self._screen.end_progress()
                    self._screen.say(
                        f"ending; running requests have {self._plan.grace_seconds:g} s, and a "
                        "second Ctrl-C ends all at once"
                    )
                announcing.cancel()
                await self._end()
        finally:
            self._kill()
            self._screen.close()
        if lost is None:
            return self._signals.exit_code
        is_unfit = lost.exit_code == _EXIT_NOT_STARTED and not self._is_ready
        return _EXIT_NOT_STARTED if is_unfit else _EXIT_FAILED

    def _start(self) -> None:
        for child in self._children:
            try:
                child.start(self._environment)
            except OSError as error:
                raise StartupError(
                    f"{child.service.name} cannot be started: {error.strerror}"
                ) from None

    async def _keep(self, child: Child) -> None:
        await child.run()
        if not self._is_ending and not self._lost.done():
            self._lost.set_result(child)

    async def _announce(self) -> None:
        """Says of each service when it is ready, and then where all serve."""
        async with asyncio.TaskGroup() as tasks:
            for child in self._children:
                tasks.create_task(self._follow(child))
        while True:
            # Fails where a service ends just now, which is noticed elsewhere.
            with contextlib.suppress(OSError):
                model, curl = await asyncio.to_thread(_try_out, self._plan)
                self._is_ready = True
                self._screen.announce(announcement(self._plan, model, curl))
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _follow(self, child: Child) -> None:
        service = child.service
        at, cert = service.operations_address, service.operations_tls_cert
        while not await asyncio.to_thread(is_ready, at, cert):
            self._screen.tick()
            await asyncio.sleep(_POLL_SECONDS)
        self._screen.show_ready(child.service)

    def _explain(self, lost: Child) -> None:
        """Says which service has ended and why, as far as its log says so."""
        self._screen.end_progress()
        name, code = lost.service.name, lost.exit_code
        lines = list(lost.last_lines)
        if code == _EXIT_NOT_STARTED and not self._is_ready and lines:
            self._screen.say(f"{name} cannot start: {reason(lines)}")
            return
        self._screen.say(f"{name} {_how_ended(code)}; all end")
        for line in telling(lines)[-_NUM_LAST_LINES:]:
            self._screen.say(f"  {line}")

    async def _end(self) -> None:
        """Ends the router, which lets its requests finish, and then the engines."""
        self._is_ending = True
        for group in ([self._router], self._engines):
            for child in group:
                child.terminate()
            deadline = self._plan.grace_seconds + _LATE_SECONDS
            async with asyncio.TaskGroup() as tasks:
                for child in group:
                    tasks.create_task(self._end_within(child, deadline))

    async def _end_within(self, child: Child, seconds: float) -> None:
        if not await child.wait(seconds):
            self._screen.say(f"{child.service.name} does not end and is killed")
            child.kill()
            await child.wait()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()

    def _end_at_once(self, code: int) -> None:
        self._kill()
        with contextlib.suppress(OSError):
            self._screen.close()
        exit_at_once(code)


def _try_out(plan: Plan) -> tuple[str, str]:
    """Returns the name of the model, and a command that asks it something.

    Raises:
        OSError: The router does not answer.
    """
    at, cert = plan.http_address, plan.tls_cert
    if plan.needs_key or plan.needs_certificate:
        # This command has none.
        curl = closed_curl_command(
            at, cert, needs_key=plan.needs_key, needs_certificate=plan.needs_certificate
        )
        return plan.model, curl
    return model_name(at, cert), curl_command(at, cert)


def _how_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    if code == -signal.SIGKILL:
        return "was killed, most likely by the system because memory ran out"
    return f"was ended by signal {-code}"
