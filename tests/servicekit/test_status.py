"""Calls of a real server that end with errors of every kind."""

import asyncio
import contextlib

import grpc
import pytest
from grpc_status import rpc_status

from protos.wire.reason import Reason
from protos.wire.status import ErrorStatus, unpack
from servicekit import status
from servicekit.errors import RequestError
from servicekit.status import ErrorsToStatus, to_error_status

METHOD = "/kitchen.v1.Kitchen/Cook"


class CookingError(RequestError):
    domain = "kitchen.v1"


class Foreign(CookingError):
    """Passes on the status of another service."""


def to_status(error):
    if isinstance(error, Foreign):
        return ErrorStatus(code=77, message=error.message, reason="ODD")
    if isinstance(error, CookingError):
        return to_error_status(error)
    return to_error_status(CookingError("the kitchen failed"))


@contextlib.asynccontextmanager
async def serving(cook):
    """Yields the call of a method that `cook` serves, and whether its handler has ended."""
    ended = asyncio.Event()

    async def behave(request, context):
        async with ErrorsToStatus(context, "Cook", to_status):
            await cook(context)
        ended.set()

    handler = grpc.unary_stream_rpc_method_handler(behave)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("kitchen.v1.Kitchen", {"Cook": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_stream(METHOD), ended
    await server.stop(None)


async def end_of(error):
    async def cook(_):
        raise error

    async with serving(cook) as (call, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=10).read()
    found = rpc_status.from_call(caught.value)
    return caught.value.code(), unpack(found.code, found.message, found.details)


async def test_error_of_ours_reaches_the_client_whole():
    error = CookingError("full", {"pots": "3"}, reason=Reason.QUEUE_FULL, retry_after=0.5)

    code, read = await end_of(error)

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert read == to_error_status(error)
    assert (read.domain, read.metadata, read.retry_after) == ("kitchen.v1", {"pots": "3"}, 0.5)


async def test_error_that_nobody_foresaw_is_logged_and_not_told(caplog):
    code, read = await end_of(ValueError("a secret"))

    assert code is grpc.StatusCode.INTERNAL
    assert read.message == "the kitchen failed"
    assert "call failed method=Cook" in caplog.text
    assert "a secret" in caplog.text


async def test_code_that_grpc_has_no_name_for_is_unknown():
    code, read = await end_of(Foreign("odd"))

    assert code is grpc.StatusCode.UNKNOWN
    assert (read.message, read.reason) == ("odd", "ODD")


async def test_client_that_does_not_read_does_not_hold_the_handler(monkeypatch):
    monkeypatch.setattr(status, "_ABORT_SECONDS", 0.1)

    async def cook(context):
        # Until the client's window and all buffers are full.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await context.write(bytes(1 << 20))
        raise CookingError("read faster", reason=Reason.SLOW_READER)

    async with asyncio.timeout(20), serving(cook) as (call, ended):
        reading = call(b"")
        await reading.read()
        await ended.wait()
        assert not reading.done()
