"""gRPC calls with and without API keys."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from protos.pagestream.router.v1 import router_pb2 as pb
from router.access.keyring import Keyring
from router.server.key_check import KeyCheck
from tests.fakes.fake_fleet import FakeFleet
from tests.router.access.key_files import KEY, OTHER, entry, write
from tests.router.server.test_grpc_server import ADMITTED, TEXT, refusal, serving

A = (("authorization", f"Bearer {KEY}"),)
B = (("authorization", f"bearer {OTHER}"),)
METHODS = pb.DESCRIPTOR.services_by_name["RouterService"].methods_by_name
REQUESTS = {
    "Generate": pb.GenerateRequest(text=TEXT),
    "Tokenize": pb.TokenizeRequest(text=TEXT),
    "Detokenize": pb.DetokenizeRequest(token_ids=[80]),
    "ListModels": pb.ListModelsRequest(),
    "ListEngines": pb.ListEnginesRequest(),
}


@pytest.fixture
def keyring(tmp_path):
    path = write(tmp_path / "keys", entry(), entry(OTHER, "b", models="[other]"))
    return Keyring(path)


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_needs_a_key(keyring, method):
    fleet = FakeFleet()
    async with serving(fleet, keyring=keyring) as (stub, _):
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            call = getattr(stub, method)(REQUESTS[method], metadata=metadata, timeout=10)
            code, error = await refusal(call)
            assert (code.name, error.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
            assert "wrong" not in error.message
        fleet.answer([80])
        call = getattr(stub, method)(REQUESTS[method], metadata=A, timeout=10)
        if isinstance(call, grpc.aio.UnaryStreamCall):
            assert [message async for message in call][-1].HasField("finish")
        else:
            await call


async def test_message_of_a_stranger_is_not_parsed_and_probes_need_no_key(keyring):
    asked = []

    async def proceed(details):
        asked.append(details.method)

    check = KeyCheck(keyring)
    for method in ("pagestream.router.v1.RouterService/Generate", "grpc.health.v1.Health/Check"):
        details = SimpleNamespace(method=f"/{method}", invocation_metadata=())
        handler = await check.intercept_service(proceed, details)
        assert handler is None or handler.request_deserializer is None
    assert asked == ["/grpc.health.v1.Health/Check"]


@pytest.mark.parametrize("name", ["", "small", "made-up"])
async def test_model_that_is_not_allowed_does_not_exist(keyring, name):
    fleet = FakeFleet()
    async with serving(fleet, keyring=keyring) as (stub, _):
        for ask in (
            stub.Generate(pb.GenerateRequest(model=name, text=TEXT), metadata=B, timeout=10),
            stub.Tokenize(pb.TokenizeRequest(model=name, text=TEXT), metadata=B, timeout=10),
            stub.Detokenize(
                pb.DetokenizeRequest(model=name, token_ids=[80]), metadata=B, timeout=10
            ),
        ):
            code, error = await refusal(ask)
            assert (code.name, error.reason) == ("NOT_FOUND", "UNKNOWN_MODEL")
            assert 'not to the API key "b"' in error.message
        assert not (await stub.ListModels(pb.ListModelsRequest(), metadata=B)).models
        assert not (await stub.ListEngines(pb.ListEnginesRequest(), metadata=B)).engines
        assert (await stub.ListModels(pb.ListModelsRequest(), metadata=A)).models
    assert fleet.requests == []


async def test_priority_is_bounded(keyring):
    async with serving(FakeFleet(), keyring=keyring) as (stub, _):
        asked = pb.GenerateRequest(text=TEXT, priority=1)
        code, error = await refusal(stub.Generate(asked, metadata=A, timeout=10))
    assert (code.name, error.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


async def test_stream_of_a_revoked_key_ends(keyring, tmp_path):
    fleet = FakeFleet()
    async with serving(fleet, keyring=keyring) as (stub, pipeline):
        fleet.put(ADMITTED)
        call = stub.Generate(REQUESTS["Generate"], metadata=A, timeout=10)
        messages = aiter(call)
        await anext(messages)
        write(tmp_path / "keys", entry(OTHER, "b"))
        await keyring.refresh()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(messages)

        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.details() == 'the API key "a" has been revoked'
        await asyncio.wait_for(pipeline.wait_idle(), 10)
        assert fleet.num_open == 0
        code, _ = await refusal(stub.Generate(REQUESTS["Generate"], metadata=A, timeout=10))
        assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_key_over_its_limit_is_told_when_to_come_back(tmp_path):
    keyring = Keyring(write(tmp_path / "keys", entry(max_concurrent_requests=1)))
    fleet = FakeFleet()
    async with serving(fleet, keyring=keyring) as (stub, _):
        fleet.put(ADMITTED)
        first = stub.Generate(REQUESTS["Generate"], metadata=A, timeout=10)
        await first.read()
        for method in ("Generate", "Tokenize", "Detokenize"):
            call = getattr(stub, method)(REQUESTS[method], metadata=A, timeout=10)
            code, error = await refusal(call)
            assert (code.name, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
            assert error.retry_after == 1.0
        first.cancel()
