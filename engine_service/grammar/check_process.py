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
import socket
import threading
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
_UNLIMITED_STACK_BYTES = 2 << 20
"""What the C library gives a thread if stacks have no limit."""
_WALL_FACTOR, _WALL_SECONDS = 5, 10.0
"""Wall time per CPU time, and beside it: the machine may be busy."""


# What Rust or Python ends with where the library cannot go on. Other signals come from outside.
_CRASH_CODES = frozenset({1, -signal.SIGILL})


class CheckEnded(Exception):
    """The process ended before it answered, or had to be ended; the text says why.

    Attributes:
        is_by_grammar: Whether the grammar ended it, by a limit or a crash. Otherwise it was killed,
            by the kernel for want of memory perhaps, or did not answer: nothing is known of the
            grammar.
    """

    def __init__(self, why: str, *, is_by_grammar: bool = False) -> None:
        super().__init__(why)
        self.is_by_grammar = is_by_grammar


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
        self._is_killed = False
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Of the same connection; it can be shut down while a call waits.
        self._socket = socket.fromfd(self._pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self._process = context.Process(
                    target=_main, args=(theirs, setup), name=_NAME, daemon=True
                )
                start_without_signals(self._process)
        except BaseException:
            self._close()
            raise
        refusal = self._ask(tokenizer_json, _LOAD_SECONDS)
        if refusal:
            self.end()
            raise CheckEnded(refusal)

    @property
    def pid(self) -> int | None:
        """The process's ID."""
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether it can be asked: it runs, and nobody has killed it."""
        return not self._is_killed and self._process.is_alive()

    def check(self, grammar: Grammar) -> str:
        """Tries a grammar; returns an empty text, or why it cannot be used.

        Takes a bounded time, whatever the process does.

        Raises:
            CheckEnded: The process ended.
        """
        text = {"form": grammar.form, "text": grammar.text, "choices": grammar.choices}
        return self._ask(
            json.dumps(text).encode(), _WALL_FACTOR * self._setup.cpu_seconds + _WALL_SECONDS
        )

    def kill(self) -> None:
        """Kills the process; a pending call raises CheckEnded at once, even if it does not end."""
        self._is_killed = True
        self._process.kill()
        # It may have been closed in the meantime.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Kills the process and waits up to a second for its end."""
        self.kill()
        self._process.join(_REAP_SECONDS)
        self._close()

    def _close(self) -> None:
        self._socket.close()
        self._pipe.close()

    def _ask(self, message: bytes, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        # Sending waits too, for a process that does not read.
        watchdog = threading.Timer(seconds, self.kill)
        watchdog.daemon = True
        try:
            watchdog.start()
            self._pipe.send_bytes(message)
            return self._pipe.recv_bytes(_MAX_ANSWER_BYTES).decode()
        # The first is of a host that has no more threads.
        except (RuntimeError, OSError, EOFError, UnicodeDecodeError) as error:
            is_late = time.monotonic() >= deadline
            if not self._is_killed:
                # It is about to end by itself, and its exit code says why.
                self._process.join(_REAP_SECONDS)
            self.end()
            ended = why_ended(self._setup, self._process.exitcode)
            if is_late and not ended.is_by_grammar:
                ended = CheckEnded(f"the process that tries it did not answer in {seconds:g} s")
            raise ended from error
        finally:
            watchdog.cancel()


def why_ended(setup: CheckSetup, exit_code: int | None) -> CheckEnded:
    """Returns the error for a process that ended while it tried a grammar."""
    if exit_code == -signal.SIGPROF:
        why = f"it takes over {setup.cpu_seconds:g} s of processor time"
    elif exit_code in (-signal.SIGABRT, -signal.SIGSEGV):
        why = f"it takes over {setup.memory_bytes} bytes of memory or is nested too deep"
    elif exit_code in _CRASH_CODES:
        why = f"the process that tries it crashes with exit code {exit_code}"
    else:
        return CheckEnded(f"the process that tries it ended with exit code {exit_code}")
    return CheckEnded(why, is_by_grammar=True)


def _main(pipe: Connection, setup: CheckSetup) -> None:
    die_with_parent()
    # If the machine has no memory left, the kernel should end this process and not the core.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # The library writes to standard error before it aborts.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_stack()
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


def _limit_stack() -> None:
    """Leaves half of what a thread of the core has, in which the grammar is compiled again.

    What overflows the stack there would end the engine.
    """
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_STACK)
    num_bytes = _UNLIMITED_STACK_BYTES if limit == resource.RLIM_INFINITY else limit
    resource.setrlimit(resource.RLIMIT_STACK, (num_bytes // 2, hard_limit))
