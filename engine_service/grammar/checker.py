"""Checks the grammars of new requests before the core sees them."""

import asyncio
import contextlib
import hashlib
import json
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from engine_service.errors import (
    QueueFull,
    RequestError,
    grammar_not_checked,
    unusable_grammar,
)
from engine_service.grammar.check_process import CheckEnded, CheckProcess, CheckSetup
from protos.wire.sampling_params import Grammar

Done = Callable[[RequestError | None], None]

KNOWN, USABLE, REFUSED, ENDED, LOST, DROPPED = OUTCOMES = (
    "known",
    "usable",
    "refused",
    "ended",
    "lost",
    "dropped",
)
"""Outcomes of a check: the answer was known; the grammar is usable; it is not; it is not, for it
ended the process; the process was lost otherwise; it was ended since nobody waited any more."""

_MAX_KNOWN = 4096
_MAX_WAITING = 256
"""Grammars, not requests."""
_RETRY_AFTER_SECONDS = 1.0
_DROP_SECONDS = 2.0
"""How long a check that nobody waits for may go on. Ending it costs as much: the next process must
read the tokenizer first."""

_logger = logging.getLogger(__name__)


class CheckObserver(Protocol):
    """Counts checks."""

    def count_grammar(self, outcome: str, seconds: float) -> None:
        """A grammar was checked; one of `OUTCOMES`, and how long the check took."""


@dataclass(slots=True, eq=False)
class _Check:
    """A grammar whose answer is not known yet, and who waits for it, in order."""

    key: bytes
    grammar: Grammar
    waiting: dict[Done, None] = field(default_factory=dict)


class GrammarChecker:
    """Tries each new grammar once, in a process of its own, and remembers the answer.

    Used on the event loop only, except `join`. One thread of its own talks to the process, one
    grammar at a time, and starts another process when one has ended. Nothing waits for it but the
    requests with a new grammar.
    """

    def __init__(self, setup: CheckSetup, tokenizer_json: bytes, observer: CheckObserver) -> None:
        self._setup = setup
        self._tokenizer_json = tokenizer_json
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._checks: dict[bytes, _Check] = {}
        """In the order in which they are done, that of the thread first."""
        self._running: _Check | None = None
        """What the thread has got and not answered."""
        self._tasks: queue.SimpleQueue[_Check | None] = queue.SimpleQueue()
        self._process: CheckProcess | None = None
        self._is_closed = False
        # Guards the process against `close`, which would miss one that is just being started.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="grammar-check", daemon=True)

    def start(self) -> None:
        """Starts the thread and the process; grammars may be checked at once."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The process's ID; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def check(self, grammar: Grammar, done: Done) -> Callable[[], None]:
        """Checks a grammar, and calls `done` once, perhaps before it returns.

        `done` gets None if the grammar is usable, else the error with which its request ends.

        Returns:
            What to call when the answer is not wanted any more. A check that nobody waits for is
            skipped, or ended if it takes long. After the answer, it does nothing.

        Raises:
            QueueFull: Too many grammars wait.
        """
        key = _digest(grammar)
        refusal = self._known.get(key)
        if refusal is not None:
            self._known.move_to_end(key)
            self._observer.count_grammar(KNOWN, 0.0)
            done(unusable_grammar(grammar.form, refusal) if refusal else None)
            return lambda: None
        check = self._checks.get(key)
        if check is None:
            if len(self._checks) >= _MAX_WAITING:
                raise QueueFull(
                    f"{len(self._checks)} new grammars wait to be checked, the most allowed",
                    {"waiting_count": str(len(self._checks))},
                    retry_after=_RETRY_AFTER_SECONDS,
                )
            check = self._checks[key] = _Check(key, grammar)
            self._begin_next()
        check.waiting[done] = None
        return partial(self._forget, check, done)

    def close(self) -> None:
        """Ends the process; nobody who waits is called."""
        self._checks.clear()
        with self._lock:
            self._is_closed = True
        self._kill()
        self._tasks.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the thread after `close`; blocks."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _begin_next(self) -> None:
        if self._running is None and self._checks:
            self._running = next(iter(self._checks.values()))
            self._tasks.put(self._running)

    def _forget(self, check: _Check, done: Done) -> None:
        if done not in check.waiting:
            return
        del check.waiting[done]
        if check.waiting:
            return
        if check is self._running:
            self._loop.call_later(_DROP_SECONDS, self._drop, check)
        else:
            self._checks.pop(check.key, None)

    def _drop(self, check: _Check) -> None:
        """Ends a check that runs, unless it is wanted again."""
        if check is self._running and not check.waiting and not self._is_closed:
            # Who asks for the grammar now has it tried anew.
            del self._checks[check.key]
            self._kill()

    def _kill(self) -> None:
        # The thread may forget it in the meantime.
        process = self._process
        if process is not None:
            process.kill()

    def _run(self) -> None:
        # Reading a large tokenizer takes seconds; no request should wait for it.
        self._try_start()
        while not self._is_closed and (check := self._tasks.get()) is not None:
            if self._process is not None and not self._process.is_usable:
                self._process.end()
                self._process = None
            if self._process is None:
                self._try_start()
            begun_at = time.monotonic()
            outcome, why = self._try(check.grammar)
            seconds = time.monotonic() - begun_at
            # The loop may have been closed in the meantime.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finish, check, outcome, why, seconds)
        if self._process is not None:
            self._process.end()

    def _try(self, grammar: Grammar) -> tuple[str, str]:
        """Returns the outcome, and why the grammar is not usable."""
        process = self._process
        if process is None:
            return LOST, "the engine cannot start the process that tries grammars"
        try:
            refusal = process.check(grammar)
        except CheckEnded as error:
            self._process = None
            return ENDED if error.is_by_grammar else LOST, str(error)
        return REFUSED if refusal else USABLE, refusal

    def _try_start(self) -> None:
        try:
            process = CheckProcess(self._setup, self._tokenizer_json)
        except (CheckEnded, OSError) as error:
            if not self._is_closed:
                _logger.error("grammar check not started detail=%s", error)
            return
        with self._lock:
            self._process = process
            if self._is_closed:
                process.kill()

    def _finish(self, check: _Check, outcome: str, why: str, seconds: float) -> None:
        if self._is_closed:
            return
        self._running = None
        if self._checks.get(check.key) is check:
            del self._checks[check.key]
        elif outcome == LOST:
            outcome = DROPPED
        self._begin_next()
        self._observer.count_grammar(outcome, seconds)
        form = check.grammar.form
        # Whoever asks again for one that ended the process has it tried again: the reason may have
        # been another.
        if outcome in (USABLE, REFUSED):
            self._known[check.key] = why
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        elif outcome != DROPPED:
            _logger.warning("grammar check %s form=%s detail=%s", outcome, form, why)
        error: RequestError | None = None
        if outcome == LOST:
            error = grammar_not_checked(form, why)
        elif why:
            error = unusable_grammar(form, why)
        waiting, check.waiting = check.waiting, {}
        for done in waiting:
            done(error)


def _digest(grammar: Grammar) -> bytes:
    parts = json.dumps([grammar.form, grammar.text, grammar.choices])
    return hashlib.sha256(parts.encode()).digest()
