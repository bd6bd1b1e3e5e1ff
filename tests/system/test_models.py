"""Engines of several models behind one router, and engines that do not fit together."""

import grpc
import pytest

from protos.pagestream.router.v1 import router_pb2
from tests.fakes import small_tokenizer
from tests.system.fleets import check, fleet_of, run_all, streams_of

OTHER = ("--model-name", "other", "--fingerprint", "0" * 32)


async def test_each_request_goes_to_an_engine_of_its_model(tmp_path):
    async with fleet_of(tmp_path, (), (), OTHER) as fleet, fleet.client() as stub:
        *engines, other = fleet.engines
        mine, theirs = streams_of(model="fake"), streams_of(model="other")

        await run_all(stub, [*mine, *theirs])

        check([*mine, *theirs])
        assert {stream.engine for stream in mine} == {engine.address for engine in engines}
        assert {stream.engine for stream in theirs} == {other.address}
        request = router_pb2.GenerateRequest(token_ids=router_pb2.TokenIds(ids=[1]))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Generate(request, timeout=10).read()
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        await fleet.check_nothing_left(*fleet.engines)


@pytest.mark.parametrize("field", ["fingerprint", "tokenizer_sha256"])
async def test_engine_of_another_model_with_the_same_name_is_refused(tmp_path, field):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    small_tokenizer.save(folder)
    options = {
        "fingerprint": ("--fingerprint", "0" * 32),
        "tokenizer_sha256": ("--tokenizer", str(folder)),
    }
    async with fleet_of(tmp_path, (), options[field], is_started=False) as fleet:
        first, odd = fleet.engines
        await first.start()
        await fleet.wait_serving(first)
        streams, later = streams_of(), streams_of()

        async with fleet.client() as stub:
            await run_all(stub, streams, odd.start)
            await fleet.wait_refused(odd, f'its model "fake" has {field}', first.address)
            await fleet.note_tasks()
            await run_all(stub, later)

        check([*streams, *later])
        assert {stream.engine for stream in [*streams, *later]} == {first.address}
        await fleet.check_nothing_left(first)
