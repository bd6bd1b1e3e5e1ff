"""The process that tries grammars of strangers, and the protocol with it.

Messages are bytes of bounded length. First come the tokenizer file and the answer to it. Each
grammar is then sent in JSON, and answered by an empty text if it is usable, else by why it is not.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from engine_service.grammar.compiler import BadGrammar
from engine_service.grammar.tokenizer import UnusableTokenizer, read_tokenizer
from engine_service.grammar.trial import try_grammar
from protos.wire.sampling_params import Grammar
from servicekit.child_process import die_with_parent, start_without_signals

_NAME = "pagestream-engine-grammar-check"
_MAX_ANSWER_BYTES = 1 << 14
_LOAD_SECONDS = 60.0
_REAP_SECONDS = 1.0
_WALL_FACTOR, _WALL_SECONDS = 5, 10.0
"""Wall time per CPU time, and beside it: the machine may be busy."""


class CheckEnded(Exception):
    """The process ended before it answered, or had to be ended; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSetup:
    """What a process needs to know besides the tokenizer file.

    Attributes:
        vocab_size: The number of the model's logits.
        eos_token_ids: All tokens that end a text.
        cpu_seconds: CPU time for one grammar.
        memory_bytes: What one may take beyond the memory that the process has at its start.
    """

    vocab_size: int
    eos_token_ids: frozenset[int]
    cpu_seconds: float
    memory_bytes: int


class CheckProcess:
    """A running process. One thread uses it, which must outlive it; any may kill it."""

    def __init__(self, setup: CheckSetup, tokenizer_json: bytes) -> None:
        """Starts the process and waits until it has read the tokenizer file.

        Raises:
            CheckEnded: It ended, or cannot read the tokenizer.
            OSError: The system cannot start another process.
        """
        self._setup = setup
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        try:
            with theirs:
                self._process = context.Process(
                    target=_main, args=(theirs, setup), name=_NAME, daemon=True
                )
                start_without_signals(self._process)
        except BaseException:
            self._pipe.close()
            raise
        refusal = self._ask(tokenizer_json, _LOAD_SECONDS)
        if refusal:
            self.end()
            raise CheckEnded(refusal)

    @property
    def pid(self) -> int | None:
        """The process's ID."""
        return self._process.pid

    def check(self, grammar: Grammar) -> str:
        """Tries a grammar; returns an empty text, or why it cannot be used.

        Raises:
            CheckEnded: The process ended, because the grammar takes too much or by itself.
        """
        text = {"form": grammar.form, "text": grammar.text, "choices": grammar.choices}
        return self._ask(
            json.dumps(text).encode(), _WALL_FACTOR * self._setup.cpu_seconds + _WALL_SECONDS
        )

    def kill(self) -> None:
        """Kills the process; a pending call raises CheckEnded."""
        self._process.kill()

    def end(self) -> None:
        """Kills the process and waits up to a second for its end."""
        self._process.kill()
        self._process.join(_REAP_SECONDS)
        self._pipe.close()

    def _ask(self, message: bytes, seconds: float) -> str:
        try:
            deadline = time.monotonic() + seconds
            self._pipe.send_bytes(message)
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                self.end()
                raise CheckEnded(f"it takes over {seconds:g} s")
            return self._pipe.recv_bytes(_MAX_ANSWER_BYTES).decode()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            self.end()
            raise CheckEnded(self._why_ended()) from error

    def _why_ended(self) -> str:
        code = self._process.exitcode
        if code == -signal.SIGPROF:
            return f"it takes over {self._setup.cpu_seconds:g} s of processor time"
        if code == -signal.SIGABRT:
            return f"it takes over {self._setup.memory_bytes} bytes of memory or is nested too deep"
        return f"the process that tries it ended with exit code {code}"


def _main(pipe: Connection, setup: CheckSetup) -> None:
    die_with_parent()
    # The library writes to standard error before it aborts.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError, OSError):
        try:
            tokenizer = read_tokenizer(pipe.recv_bytes(), setup.vocab_size, setup.eos_token_ids)
        except UnusableTokenizer as error:
            pipe.send_bytes(_cut(error))
            return
        pipe.send_bytes(b"")
        _limit_memory(setup.memory_bytes)
        while True:
            values = json.loads(pipe.recv_bytes())
            values["choices"] = tuple(values["choices"])
            # CPU time does not pass while the process waits; the next grammar restarts the timer.
            signal.setitimer(signal.ITIMER_PROF, setup.cpu_seconds)
            try:
                try_grammar(tokenizer, Grammar(**values))
                answer = b""
            except BadGrammar as error:
                answer = _cut(error)
            except MemoryError:
                answer = b"it takes over %d bytes of memory" % setup.memory_bytes
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes(answer)


def _cut(error: Exception) -> bytes:
    return (str(error) or "refused").encode(errors="replace")[: _MAX_ANSWER_BYTES // 2]


def _limit_memory(num_bytes: int) -> None:
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = num_pages * os.sysconf("SC_PAGE_SIZE") + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
