import asyncio
import json
import os
import signal

import pytest

from engine_service.errors import InvalidRequest, QueueFull
from engine_service.grammar import checker as checker_module
from engine_service.grammar.check_process import CheckSetup
from engine_service.grammar.checker import ENDED, KNOWN, REFUSED, USABLE, GrammarChecker
from protos.wire.sampling_params import Grammar
from tests.engine_service.grammar.model import EOS_TOKEN_IDS, TOKENIZER_JSON, VOCAB_SIZE

WAIT_SECONDS = 60.0
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
        self.checker.check(grammar, answer.set_result)
        return answer

    async def answer(self, grammar):
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.ask(grammar)


def _schema(value):
    return Grammar(form="json_schema", text=json.dumps(value))


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
    "chain of rules": Grammar(
        form="lark",
        text="start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}? "b"' for i in range(9_000))
        + '\nr9000: "c"'),
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


async def test_a_killed_process_is_replaced():
    async with Checks() as checks:
        assert await checks.answer(GOOD) is None
        pid = checks.checker.pid
        os.kill(pid, signal.SIGKILL)
        error = await checks.answer(Grammar(form="regex", text="x"))
        assert "exit code -9" in error.message
        assert await checks.answer(Grammar(form="regex", text="x")) is None
        assert checks.checker.pid != pid


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
