"""What the server does when the core, or its own code, does what nobody foresaw."""

import asyncio
import dataclasses
import logging

import pytest

from engine_service.errors import EngineFailed, StartupError
from engine_service.server.tokenizer_files import TokenizerFiles
from tests.engine_service.core.fake_executor import make_info
from tests.engine_service.server.harness import (
    ScriptedCore,
    failure_status,
    generate_request,
    read_until,
    running_engine,
    starting_engine,
    status_of,
    submission,
)


async def test_core_that_cannot_start_says_why():
    core = ScriptedCore()
    core.send(StartupError("no memory for one block"))
    async with starting_engine(core) as engine:
        with pytest.raises(StartupError, match="no memory for one block"):
            await engine.server.serve(core.pipe_of_server, TokenizerFiles())
        assert not engine.server.is_ready


async def test_core_that_ends_before_it_is_ready_is_lost():
    core = ScriptedCore()
    core.die()
    async with starting_engine(core) as engine:
        with pytest.raises(EngineFailed):
            await engine.server.serve(core.pipe_of_server, TokenizerFiles())


@pytest.mark.parametrize("message", ["nonsense", make_info()])
async def test_message_that_makes_no_sense_is_the_end_of_the_core(message, caplog):
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request())
        await engine.core.next_request()
        engine.core.send(message)
        assert (await status_of(call)).reason == "ENGINE_FAILED"
        await asyncio.wait_for(engine.server.wait_core_lost(), 10)
    assert "message from the core could not be handled" in caplog.text


async def test_output_of_unknown_requests_is_passed_over():
    async with running_engine() as engine:
        call = engine.stub.Generate(generate_request())
        request = await engine.core.next_request()
        engine.core.step({999: [1, 2], request.request_id: [3]})
        assert list((await read_until(call, lambda message: message.token_ids)).token_ids) == [3]


async def test_bug_in_the_server_is_internal_and_logged_and_service_goes_on(caplog):
    async with running_engine() as engine:
        servicer = engine.server._servicer
        sound = servicer.replica
        servicer.replica = dataclasses.replace(sound, limits=None)
        with caplog.at_level(logging.ERROR):
            status = await status_of(engine.stub.Generate(generate_request()))
            many = engine.stub.GenerateMany()
            await many.write(submission(1))
            message = await read_until(many, lambda message: message.failures)
        assert (status.code, status.reason) == (13, "INTERNAL")
        assert failure_status(message.failures[0]).reason == "INTERNAL"
        assert "AttributeError" in caplog.text
        assert "AttributeError" not in status.message
        assert await engine.metric('requests_total{outcome="internal"}') == 2

        servicer.replica = sound
        call = engine.stub.Generate(generate_request(9))
        assert list((await engine.core.next_request()).prompt_token_ids) == [9]
        call.cancel()
