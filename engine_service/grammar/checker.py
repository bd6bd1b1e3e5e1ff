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
from typing import Protocol

from engine_service.errors import QueueFull, RequestError, unusable_grammar
from engine_service.grammar.check_process import CheckEnded, CheckProcess, CheckSetup
from protos.wire.sampling_params import Grammar

Done = Callable[[RequestError | None], None]

KNOWN, USABLE, REFUSED, ENDED = OUTCOMES = ("known", "usable", "refused", "ended")
"""Outcomes of a check: the answer was known; it is usable; it is not; the process ended."""

_MAX_KNOWN = 4096
_MAX_WAITING = 64
"""Grammars, not requests."""
_RETRY_AFTER_SECONDS = 1.0

_logger = logging.getLogger(__name__)


class CheckObserver(Protocol):
    """Counts checks."""

    def count_grammar(self, outcome: str, seconds: float) -> None:
        """A grammar was checked; one of `OUTCOMES`, and how long the check took."""


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
        self._waiting: dict[bytes, list[Done]] = {}
        self._tasks: queue.SimpleQueue[tuple[bytes, Grammar] | None] = queue.SimpleQueue()
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

    def check(self, grammar: Grammar, done: Done) -> None:
        """Checks a grammar, and calls `done` once, perhaps before it returns.

        `done` gets None if the grammar is usable, else the error with which its request ends.

        Raises:
            QueueFull: Too many grammars wait.
        """
        key = _digest(grammar)
        refusal = self._known.get(key)
        if refusal is not None:
            self._known.move_to_end(key)
            self._observer.count_grammar(KNOWN, 0.0)
            done(unusable_grammar(grammar.form, refusal) if refusal else None)
            return
        if key in self._waiting:
            self._waiting[key].append(done)
            return
        if len(self._waiting) >= _MAX_WAITING:
            raise QueueFull(
                f"{len(self._waiting)} new grammars wait to be checked, the most allowed",
                {"waiting_count": str(len(self._waiting))},
                retry_after=_RETRY_AFTER_SECONDS,
            )
        self._waiting[key] = [done]
        self._tasks.put((key, grammar))

    def close(self) -> None:
        """Ends the process; nobody who waits is called."""
        self._waiting.clear()
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()
        self._tasks.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the thread after `close`; blocks."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        # Reading a large tokenizer takes seconds; no request should wait for it.
        self._try_start()
        while not self._is_closed and (task := self._tasks.get()) is not None:
            if self._process is None:
                self._try_start()
            key, grammar = task
            begun_at = time.monotonic()
            refusal, outcome = self._check(grammar)
            seconds = time.monotonic() - begun_at
            # The loop may have been closed in the meantime.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(
                    self._finish, key, grammar, refusal, outcome, seconds
                )
        if self._process is not None:
            self._process.end()

    def _check(self, grammar: Grammar) -> tuple[str, str]:
        process = self._process
        if process is None:
            return "the engine cannot start the process that tries grammars", ENDED
        try:
            refusal = process.check(grammar)
        except CheckEnded as error:
            self._process = None
            if not self._is_closed:
                _logger.warning("grammar check ended form=%s detail=%s", grammar.form, error)
            return str(error), ENDED
        return refusal, REFUSED if refusal else USABLE

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

    def _finish(
        self, key: bytes, grammar: Grammar, refusal: str, outcome: str, seconds: float
    ) -> None:
        self._observer.count_grammar(outcome, seconds)
        # Whoever asks again for one that ended the process has it tried again: the reason may have
        # been another.
        if outcome != ENDED:
            self._known[key] = refusal
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        error = unusable_grammar(grammar.form, refusal) if refusal else None
        for done in self._waiting.pop(key, ()):
            done(error)


def _digest(grammar: Grammar) -> bytes:
    parts = json.dumps([grammar.form, grammar.text, grammar.choices])
    return hashlib.sha256(parts.encode()).digest()
