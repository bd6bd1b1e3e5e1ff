"""Hostile clients of a router and of an engine, each a process of its own that must not mind.

What each mode sends is in `hostile_modes`. While a mode is tried the service is alive, another
client's stream is exact, and afterwards the memory is back and the log has no traceback.
"""

import asyncio
import json
import re
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status

from examples.demo.services import http_get
from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire.status import unpack
from tests.engine_service.test_launch import CONFIG
from tests.fakes import small_tokenizer
from tests.fakes.service_process import HOST, ServiceProcess, free_ports, running
from tests.system.fleets import CheckedStream, fleet_of, until
from tests.system.hostile_modes import engine_modes, router_modes

TIMEOUT = 60.0
LIVEZ_SECONDS = 5.0
"""Generous: it is a stall of seconds that is looked for."""
SLACK_BYTES = 150 << 20
"""Of memory, over what a service had before: arenas and buffers that are kept for the next."""
SHORT_BYTES = 1 << 18
LONG_BYTES = 4 << 20
RAW = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]

SIZES = [SHORT_BYTES, pytest.param(LONG_BYTES, marks=pytest.mark.slow)]


async def answer_of(client, mode):
    """Makes one call and returns the name of its status, its reason and the field it names."""
    messages = mode.send()
    is_stream = mode.method.endswith(("/GenerateMany", "/ServerReflectionInfo"))
    make = client.stream_stream if is_stream else client.unary_stream
    compression = grpc.Compression.Gzip if mode.is_gzip else None
    asked = iter(messages) if is_stream else messages[0]
    call = make(mode.method)(asked, timeout=TIMEOUT, compression=compression)
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        packed = rpc_status.from_call(error)
        if packed is None:
            return error.code().name, "", ""
        status = unpack(packed.code, packed.message, packed.details)
        assert not re.search(r"class|Exception|Error parsing|Traceback", status.message)
        return error.code().name, status.reason, status.metadata.get("field", "")
    return "OK", "", ""


async def check_alive(operations):
    async with asyncio.timeout(LIVEZ_SECONDS):
        await asyncio.to_thread(http_get, operations, "/livez")


async def resident_bytes(operations):
    text = await asyncio.to_thread(http_get, operations, "/metrics")
    return float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[1])


async def num_malformed(operations):
    text = await asyncio.to_thread(http_get, operations, "/metrics")
    found = re.findall(r"^pagestream_\w+_malformed_messages_total\S* (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def check_log(path: Path):
    text = path.read_text(errors="replace")
    assert "Traceback" not in text, text[-3000:]
    assert "message refused method=" in text
    assert text.count("message refused method=") <= 30, "the log line is not rate-limited"


async def try_modes(subtests, modes, address, operations, serve_another):
    """Tries all modes on one service, each beside a stream of another client."""
    at_rest = await resident_bytes(operations)
    async with grpc.aio.insecure_channel(address, options=RAW) as client:
        for mode in modes:
            with subtests.test(mode.name):
                async with asyncio.TaskGroup() as tasks:
                    other = tasks.create_task(serve_another())
                    answered = await answer_of(client, mode)
                    await check_alive(operations)
                expected = (mode.code, mode.reason, mode.field or answered[2])
                assert answered == expected
                assert other.done()
        num_refused = sum(mode.reason == "BAD_REQUEST" for mode in modes)
        assert await num_malformed(operations) >= num_refused / 2
        # A burst of them is one line in the log, or two.
        garbage = next(mode for mode in modes if mode.name == "cut off")
        for _ in range(200):
            assert (await answer_of(client, garbage))[:2] == ("INVALID_ARGUMENT", "BAD_REQUEST")

    async def is_memory_back():
        return await resident_bytes(operations) <= at_rest + SLACK_BYTES

    await until(is_memory_back)


@pytest.mark.parametrize("num_bytes", SIZES)
async def test_router_minds_no_client(subtests, tmp_path, num_bytes):
    options = ("--tokenizer", str(small_tokenizer.save(tmp_path / "tokenizer")))
    async with fleet_of(tmp_path, options) as fleet, fleet.client() as stub:

        async def serve_another():
            stream = CheckedStream(range(20), 20)
            await stream.run(stub, TIMEOUT)
            assert not stream.error
            assert not stream.fault

        modes = router_modes(num_bytes)
        await try_modes(subtests, modes, fleet.router.address, fleet.operations, serve_another)
        await fleet.check_nothing_left(*fleet.engines)
        check_log(fleet.router.log_path)


@asynccontextmanager
async def engine_service(folder):
    """An engine's real processes around a core without a model."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    port, operations_port = free_ports(2)
    arguments = ["tests.fakes.engine_process", "--model", str(folder), "--port", str(port)]
    arguments += ["--operations-port", str(operations_port), "--load-format", "dummy"]
    engine = ServiceProcess(arguments, port, folder / "engine.log")
    operations = f"{HOST}:{operations_port}"

    async def is_ready():
        try:
            return await asyncio.to_thread(http_get, operations, "/readyz") is not None
        except OSError:
            return False

    async with running(engine):
        await until(is_ready)
        yield engine, operations
        await engine.end(signal.SIGTERM)


def submission(handle, **params):
    request = engine_pb2.GenerateRequest(
        prompt_token_ids=[1, 2, 3],
        sampling_params=engine_pb2.SamplingParams(max_tokens=5, temperature=0, **params),
    )
    return engine_pb2.Submission(handle=handle, request=request)


async def read_until_ended(call, handles):
    """Reads a stream until these requests have ended; returns tokens by handle, and failures."""
    tokens = {handle: [] for handle in handles}
    failures, ended = {}, set()
    async with asyncio.timeout(TIMEOUT):
        while ended != set(handles):
            message = await call.read()
            assert message is not grpc.aio.EOF
            start = 0
            for handle, count in zip(message.handles, message.token_counts, strict=True):
                tokens[handle] += message.token_ids[start : start + count]
                start += count
            ended.update(finish.handle for finish in message.finishes)
            for failure in message.failures:
                error = failure.error
                failures[failure.handle] = unpack(error.code, error.message, error.details)
                ended.add(failure.handle)
    return tokens, failures


@pytest.mark.parametrize("num_bytes", SIZES)
async def test_engine_minds_no_client(subtests, tmp_path, num_bytes):
    async with (
        engine_service(tmp_path) as (engine, operations),
        grpc.aio.insecure_channel(engine.address) as channel,
    ):
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        request = submission(1).request
        alone = [t async for m in stub.Generate(request, timeout=TIMEOUT) for t in m.token_ids]
        assert len(alone) == 5

        async def serve_another():
            call = stub.Generate(request, timeout=TIMEOUT)
            assert [t async for message in call for t in message.token_ids] == alone

        modes = engine_modes(num_bytes)
        await try_modes(subtests, modes, engine.address, operations, serve_another)
        check_log(engine.log_path)


async def test_submission_that_passes_a_bound_is_refused_alone(tmp_path):
    async with (
        engine_service(tmp_path) as (engine, _),
        grpc.aio.insecure_channel(engine.address, options=RAW) as channel,
    ):
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        call = stub.GenerateMany()
        bias = engine_pb2.LogitBias(token_id=1, bias=1.0)
        await call.write(
            engine_pb2.GenerateManyRequest(
                submissions=[
                    submission(1),
                    submission(2, stop_token_ids=[0] * 1025),
                    submission(3, logit_bias=[bias] * 10_000),
                    submission(4),
                ]
            )
        )

        tokens, failures = await read_until_ended(call, (1, 2, 3, 4))

        assert len(tokens[1]) == len(tokens[4]) == 5
        assert set(failures) == {2, 3}
        assert {failure.reason for failure in failures.values()} == {"BAD_SAMPLING_PARAMS"}
        assert "stop_token_ids has 1025 entries" in failures[2].message
        assert "logit_bias has at least 1025 entries" in failures[3].message
        call.cancel()
