import asyncio
import json
import os
import resource
import signal
import threading
from pathlib import Path

import grpc
import pytest

from engine_service.errors import EngineFailed, InvalidRequest, QueueFull
from engine_service.grammar import check_process
from engine_service.grammar import checker as checker_module
from engine_service.grammar.check_process import CheckSetup
from engine_service.grammar.checker import (
    DROPPED,
    ENDED,
    KNOWN,
    LOST,
    REFUSED,
    USABLE,
    GrammarChecker,
)
from engine_service.grammar.compiler import compile_grammar
from protos.wire.limits import MAX_GRAMMAR_BYTES
from protos.wire.sampling_params import Grammar
from protos.wire.status import STATUS_CODES
from tests.engine_service.grammar.model import EOS_TOKEN_IDS, TOKENIZER, TOKENIZER_JSON, VOCAB_SIZE

WAIT_SECONDS = 60.0
BYTES_PER_RULE = 3140
"""Of the stack, with `_chain`, as seen."""
GOOD = Grammar(form="regex", text="[a-c]+")


class Observer:
    def __init__(self):
        self.outcomes = []

    def count_grammar(self, outcome, seconds):
        assert seconds >= 0
        self.outcomes.append(outcome)


class Checks:
    """A checker, and its answers as awaitables."""

    def __init__(self, content=TOKENIZER_JSON, **limits):
        self.observer = Observer()
        values = {"cpu_seconds": 2.0, "memory_bytes": 1 << 28, **limits}
        setup = CheckSetup(vocab_size=VOCAB_SIZE, eos_token_ids=frozenset(EOS_TOKEN_IDS), **values)
        self.checker = GrammarChecker(setup, content, self.observer)

    async def __aenter__(self):
        self.checker.start()
        return self

    async def __aexit__(self, *_):
        self.checker.close()
        await asyncio.to_thread(self.checker.join, WAIT_SECONDS)

    def ask(self, grammar):
        answer = asyncio.get_running_loop().create_future()
        answer.forget = self.checker.check(grammar, answer.set_result)
        return answer

    async def stop(self):
        """Stops the process; returns it, and an event that is set once it is asked."""
        assert await self.answer(Grammar(form="regex", text="stop")) is None
        process = self.checker._process
        _send(process, signal.SIGSTOP, os.WSTOPPED)
        is_asked = threading.Event()
        receive = process._pipe.recv_bytes

        def note(size):
            is_asked.set()
            return receive(size)

        process._pipe.recv_bytes = note
        return process, is_asked

    async def answer(self, grammar):
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.ask(grammar)


def _send(process, number, state):
    """Sends a signal and waits until the process is in the state that it causes."""
    os.kill(process.pid, number)
    os.waitid(os.P_PID, process.pid, state)


def _oom_score_adj(pid):
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def _schema(value):
    return Grammar(form="json_schema", text=json.dumps(value))


def _chain(num_rules):
    rules = [f'r{index}: "a" r{index + 1}? "b"' for index in range(num_rules)]
    return Grammar(form="lark", text="\n".join(["start: r0", *rules, f'r{num_rules}: "c"']))


HOSTILE = {
    "nested regex": Grammar(form="regex", text="(" * 30_000 + "a" + ")" * 30_000),
    "nested lark": Grammar(form="lark", text="start: " + "(" * 99_000 + '"a"' + ")" * 99_000),
    "nested schema": Grammar(
        form="json_schema", text='{"type":"array","items":' * 9_000 + "{}" + "}" * 9_000
    ),
    "product of schemas": _schema(
        {"allOf": [{"anyOf": [{"properties": {f"{i}_{j}": {}}} for j in range(3)]}
                   for i in range(12)]}),
    "endless reference": _schema({"$ref": "#"}),
    "remote reference": _schema({"$ref": "http://a.example/schema"}),
    "overlapping patterns": _schema(
        {"type": "object", "patternProperties": {f"^a{i}.*b{{{i}}}$": {} for i in range(200)}}),
    # Ends the process: the library's stack overflows.
    "chain of rules": _chain(9_000),
}  # fmt: skip


async def test_a_new_grammar_is_tried_once():
    async with Checks() as checks:
        assert await checks.answer(GOOD) is None
        assert checks.ask(GOOD).result() is None
        assert checks.observer.outcomes == [USABLE, KNOWN]
        # Where it begins does not matter.
        assert checks.ask(Grammar(form="regex", text="[a-c]+", start_after_token_id=3)).done()


async def test_a_refusal_names_field_and_place_and_is_remembered():
    async with Checks() as checks:
        bad = Grammar(form="lark", text='start: "a" foo')
        first = await checks.answer(bad)
        assert isinstance(first, InvalidRequest)
        assert first.reason == "BAD_SAMPLING_PARAMS"
        assert first.message.startswith("grammar.lark cannot be used: at 1(8): unknown name")
        assert first.metadata["field"] == "grammar.lark"
        assert checks.ask(bad).result().message == first.message
        assert checks.observer.outcomes == [REFUSED, KNOWN]


async def test_equal_grammars_that_arrive_together_are_tried_once():
    async with Checks() as checks:
        async with asyncio.timeout(WAIT_SECONDS):
            assert await asyncio.gather(*(checks.ask(GOOD) for _ in range(9))) == [None] * 9
        assert checks.observer.outcomes == [USABLE]


async def test_hostile_grammars_are_refused_and_the_service_goes_on(subtests):
    async with Checks() as checks:
        for name, grammar in HOSTILE.items():
            with subtests.test(name):
                error = await checks.answer(grammar)
                assert isinstance(error, InvalidRequest)
                assert error.message.isprintable()
                assert len(error.message) < 700
        assert await checks.answer(GOOD) is None
        assert ENDED in checks.observer.outcomes


async def test_a_grammar_that_takes_too_long_ends_the_process_alone():
    async with Checks(cpu_seconds=0.05) as checks:
        names = [f"name_{index}" for index in range(40_000)]
        slow = _schema({"enum": names})
        error = await checks.answer(slow)
        assert "it takes over 0.05 s of processor time" in error.message
        assert await checks.answer(GOOD) is None
        # It is tried again, since another reason may have ended the process.
        assert "processor time" in (await checks.answer(slow)).message
        assert checks.observer.outcomes == [ENDED, USABLE, ENDED]


async def test_a_grammar_that_takes_too_much_memory_is_refused():
    async with Checks(memory_bytes=1 << 24, cpu_seconds=60) as checks:
        parts = [
            {"type": "object", "properties": {f"p{i}": {"type": "string"}}} for i in range(3000)
        ]
        error = await checks.answer(_schema({"anyOf": parts}))
        assert "bytes of memory" in error.message
        assert await checks.answer(GOOD) is None


async def test_what_would_nearly_overflow_the_stack_of_the_core_is_refused():
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stack_bytes = 2 << 20 if limit == resource.RLIM_INFINITY else limit
    # Three quarters of what the core has.
    num_rules = stack_bytes * 3 // 4 // BYTES_PER_RULE
    compile_grammar(TOKENIZER, _chain(num_rules))
    async with Checks() as checks:
        assert "nested too deep" in (await checks.answer(_chain(num_rules))).message
        assert await checks.answer(_chain(num_rules // 3)) is None


async def test_a_process_killed_by_others_is_not_the_client_s_mistake():
    async with Checks() as checks:
        process, is_asked = await checks.stop()
        waiting = checks.ask(GOOD)
        assert await asyncio.to_thread(is_asked.wait, WAIT_SECONDS)
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(WAIT_SECONDS):
            error = await waiting
        assert isinstance(error, EngineFailed)
        assert STATUS_CODES[error.reason] is grpc.StatusCode.UNAVAILABLE
        assert "grammar.regex could not be checked" in error.message
        assert "exit code -9" in error.message
        assert await checks.answer(GOOD) is None
        assert checks.checker._process is not process
        assert checks.observer.outcomes == [USABLE, LOST, USABLE]


async def test_the_kernel_ends_the_process_first_if_memory_runs_out():
    async with Checks() as checks:
        assert await checks.answer(GOOD) is None
        assert _oom_score_adj(checks.checker.pid) == 1000


async def test_a_process_that_ended_while_idle_costs_nobody_an_error():
    async with Checks() as checks:
        assert await checks.answer(GOOD) is None
        process = checks.checker._process
        _send(process, signal.SIGKILL, os.WEXITED | os.WNOWAIT)
        assert await checks.answer(Grammar(form="regex", text="x")) is None
        assert checks.checker._process is not process


@pytest.mark.parametrize("can_be_killed", [True, False])
async def test_a_process_that_does_not_read_is_replaced_in_time(monkeypatch, can_be_killed):
    async with Checks() as checks:
        process, _ = await checks.stop()
        # More than the connection holds.
        large = Grammar(form="choice", choices=("\x01" * MAX_GRAMMAR_BYTES,))
        with monkeypatch.context() as patch:
            patch.setattr(check_process, "_WALL_FACTOR", 0)
            patch.setattr(check_process, "_WALL_SECONDS", 0.2)
            if not can_be_killed:
                patch.setattr(process._process, "kill", lambda: None)
            error = await checks.answer(large)
        assert isinstance(error, EngineFailed)
        assert "did not answer in 0.2 s" in error.message
        assert await checks.answer(GOOD) is None
        if not can_be_killed:
            os.kill(process.pid, signal.SIGKILL)


async def test_without_threads_the_check_is_lost_and_the_next_one_is_tried(monkeypatch):
    def fail(_):
        raise RuntimeError("can't start new thread")

    async with Checks() as checks:
        assert await checks.answer(GOOD) is None
        x = Grammar(form="regex", text="x")
        with monkeypatch.context() as patch:
            patch.setattr(check_process.threading.Timer, "start", fail)
            assert isinstance(await checks.answer(x), EngineFailed)
        assert await checks.answer(x) is None


@pytest.mark.parametrize(
    ("code", "words", "is_by_grammar"),
    [
        (-signal.SIGPROF, "over 2 s of processor time", True),
        (-signal.SIGABRT, "over 7 bytes of memory", True),
        (-signal.SIGSEGV, "nested too deep", True),
        (-signal.SIGILL, "crashes with exit code -4", True),
        (1, "crashes with exit code 1", True),
        (0, "ended with exit code 0", False),
        (-signal.SIGKILL, "ended with exit code -9", False),
        (-signal.SIGTERM, "ended with exit code -15", False),
        (None, "ended with exit code None", False),
    ],
)
def test_how_the_process_ended_says_whose_fault_it_is(code, words, is_by_grammar):
    setup = CheckSetup(vocab_size=9, eos_token_ids=frozenset({1}), cpu_seconds=2.0, memory_bytes=7)
    error = check_process.why_ended(setup, code)
    assert words in str(error)
    assert error.is_by_grammar is is_by_grammar


async def test_a_check_that_nobody_waits_for_is_skipped():
    async with Checks() as checks:
        process, _ = await checks.stop()
        first = checks.ask(GOOD)
        unwanted = checks.ask(Grammar(form="regex", text="x"))
        shared = [checks.ask(Grammar(form="regex", text="y")) for _ in range(2)]
        unwanted.forget()
        unwanted.forget()
        shared[0].forget()
        os.kill(process.pid, signal.SIGCONT)
        async with asyncio.timeout(WAIT_SECONDS):
            assert await asyncio.gather(first, shared[1]) == [None] * 2
        first.forget()
        assert not unwanted.done()
        assert not shared[0].done()
        assert checks.observer.outcomes == [USABLE] * 3


async def test_a_running_check_that_nobody_waits_for_is_ended(monkeypatch):
    monkeypatch.setattr(checker_module, "_DROP_SECONDS", 0.05)
    async with Checks() as checks:
        _, is_asked = await checks.stop()
        unwanted = checks.ask(GOOD)
        assert await asyncio.to_thread(is_asked.wait, WAIT_SECONDS)
        waiting = checks.ask(Grammar(form="regex", text="x"))
        unwanted.forget()
        async with asyncio.timeout(WAIT_SECONDS):
            assert await waiting is None
        assert not unwanted.done()
        assert checks.observer.outcomes == [USABLE, DROPPED, USABLE]
        assert await checks.answer(GOOD) is None


async def test_a_running_check_that_is_wanted_again_goes_on(monkeypatch):
    monkeypatch.setattr(checker_module, "_DROP_SECONDS", 0.0)
    async with Checks() as checks:
        process, is_asked = await checks.stop()
        unwanted = checks.ask(GOOD)
        unwanted.forget()
        wanted = checks.ask(GOOD)
        # Meanwhile, the time to drop it comes.
        assert await asyncio.to_thread(is_asked.wait, WAIT_SECONDS)
        os.kill(process.pid, signal.SIGCONT)
        async with asyncio.timeout(WAIT_SECONDS):
            assert await wanted is None
        assert not unwanted.done()
        assert checks.observer.outcomes == [USABLE, USABLE]
        assert checks.checker._process is process


async def test_few_grammars_may_wait(monkeypatch):
    monkeypatch.setattr(checker_module, "_MAX_WAITING", 2)
    async with Checks() as checks:
        waiting = [checks.ask(Grammar(form="regex", text=text)) for text in "ab"]
        with pytest.raises(QueueFull, match="2 new grammars wait"):
            checks.ask(GOOD)
        # One that waits already takes no place.
        again = checks.ask(Grammar(form="regex", text="a"))
        async with asyncio.timeout(WAIT_SECONDS):
            assert await asyncio.gather(*waiting, again) == [None] * 3
        assert await checks.answer(GOOD) is None


async def test_an_unreadable_tokenizer_refuses_all():
    async with Checks(content=b"{}") as checks:
        error = await checks.answer(GOOD)
        assert isinstance(error, EngineFailed)
        assert "cannot start the process" in error.message


async def test_nobody_is_called_after_the_end():
    checks = Checks()
    async with checks:
        answer = checks.ask(GOOD)
    pid = checks.checker.pid
    await asyncio.sleep(0)
    assert not answer.done()
    if pid is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
