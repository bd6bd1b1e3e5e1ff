"""Requests with a grammar wait until it is checked; the others do not wait for them."""

import asyncio
import contextlib
import hashlib

from engine_service.errors import InvalidRequest
from engine_service.server.tokenizer_files import TokenizerFile, TokenizerFiles
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.sampling_params import SUPPORTED_PARAMS, Grammar
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.grammar.model import EOS_TOKEN_IDS, TOKENIZER_JSON, VOCAB_SIZE
from tests.engine_service.server.harness import (
    WAIT_SECONDS,
    admission,
    failure_status,
    finish,
    generate_request,
    read_until,
    running_engine,
    status_of,
    submission,
)

TOKENIZER = TokenizerFiles(
    files=(
        TokenizerFile(
            name="tokenizer.json",
            content=TOKENIZER_JSON,
            sha256=hashlib.sha256(TOKENIZER_JSON).hexdigest(),
        ),
    ),
    sha256="0" * 64,
)


class HeldCheck:
    """A check whose answers the test gives."""

    def __init__(self):
        self.waiting = []
        self.forgotten = []
        self._asked = asyncio.Event()

    def check(self, grammar, done):
        self.waiting.append((grammar, done))
        self._asked.set()
        return lambda: self.forgotten.append(grammar.text)

    async def asked(self):
        async with asyncio.timeout(WAIT_SECONDS):
            await self._asked.wait()


def _supported():
    params = tuple(dict.fromkeys([*SUPPORTED_PARAMS, "grammar"]))
    return make_info(
        vocab_size=VOCAB_SIZE, eos_token_ids=frozenset(EOS_TOKEN_IDS), supported_params=params
    )


def _with_regex(text, *prompt, **fields):
    request = generate_request(*prompt)
    request.sampling_params.grammar.CopyFrom(engine_pb2.Grammar(regex=text, **fields))
    return request


@contextlib.asynccontextmanager
async def _held_engine():
    async with running_engine(_supported()) as engine:
        check = HeldCheck()
        engine.server._client.use_grammar_check(check)
        yield engine, check


async def test_a_usable_grammar_reaches_the_core_and_a_bad_one_is_named():
    async with running_engine(_supported(), TOKENIZER) as engine:
        call = engine.stub.Generate(_with_regex("[a-c]+", 5, 6, start_after_token_id=7))
        request = await engine.core.next_request()
        wanted = Grammar(form="regex", text="[a-c]+", start_after_token_id=7)
        assert request.sampling_params.grammar == wanted
        engine.core.step(admissions=[admission(request)])
        engine.core.step({request.request_id: [1]}, finishes=[finish(request)])
        await read_until(call, lambda message: message.HasField("finish"))
        status = await status_of(engine.stub.Generate(_with_regex("a(")))
        assert (status.code, status.reason) == (3, "BAD_SAMPLING_PARAMS")
        assert "grammar.regex cannot be used" in status.message
        assert "unclosed group" in status.message
        assert await engine.metric('grammars_total{outcome="usable"}') == 1
        assert await engine.metric('grammars_total{outcome="refused"}') == 1
        assert await engine.metric("grammar_check_time_seconds_count") == 2
        assert await engine.metric('requests_total{outcome="bad_sampling_params"}') == 1


async def test_others_overtake_a_request_whose_grammar_is_checked():
    async with _held_engine() as (engine, check):
        call = engine.stub.GenerateMany()
        await call.write(submission(1, _with_regex("a", 1)))
        await call.write(submission(2, generate_request(2)))
        assert list((await engine.core.next_request()).prompt_token_ids) == [2]
        await check.asked()
        ((_, done),) = check.waiting
        done(None)
        assert list((await engine.core.next_request()).prompt_token_ids) == [1]


async def test_a_request_can_be_cancelled_while_its_grammar_is_checked():
    async with _held_engine() as (engine, check):
        call = engine.stub.GenerateMany()
        await call.write(submission(1, _with_regex("a", 1)))
        await check.asked()
        await call.write(engine_pb2.GenerateManyRequest(cancelled_handles=[1]))
        await call.write(submission(2, generate_request(2)))
        assert list((await engine.core.next_request()).prompt_token_ids) == [2]
        assert check.forgotten == ["a"]
        check.waiting[0][1](None)
        check.waiting[0][1](InvalidRequest("too late"))
        # Its handle is free again.
        await call.write(submission(1, generate_request(3)))
        assert list((await engine.core.next_request()).prompt_token_ids) == [3]
        assert await engine.metric('requests_total{outcome="cancelled"}') == 1


async def test_the_time_of_the_check_counts():
    async with _held_engine() as (engine, check):
        call = engine.stub.GenerateMany()
        message = submission(1, _with_regex("a", 1))
        message.submissions[0].timeout.FromMilliseconds(50)
        await call.write(message)
        answer = await read_until(call, lambda message: message.failures)
        assert failure_status(answer.failures[0]).reason == "DEADLINE_EXCEEDED"
        assert check.forgotten == ["a"]
        check.waiting[0][1](None)
        await call.write(submission(2, generate_request(2)))
        assert list((await engine.core.next_request()).prompt_token_ids) == [2]


async def test_without_tokenizer_the_parameter_is_unsupported():
    async with running_engine(make_info(supported_params=("temperature",))) as engine:
        status = await status_of(engine.stub.Generate(_with_regex("a")))
        assert status.reason == "UNSUPPORTED_PARAMETER"
        info = await engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
        assert list(info.supported_sampling_params) == ["temperature"]


async def test_where_a_grammar_begins_must_be_a_token():
    async with running_engine(_supported(), TOKENIZER) as engine:
        request = _with_regex("a", start_after_token_id=VOCAB_SIZE)
        status = await status_of(engine.stub.Generate(request))
        assert status.reason == "TOKEN_OUT_OF_RANGE"
        assert "grammar.start_after_token_id" in status.message
