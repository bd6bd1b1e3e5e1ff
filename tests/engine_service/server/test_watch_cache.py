import asyncio

from protos.pagestream.engine.v1 import engine_pb2
from tests.engine_service.server.harness import (
    WAIT_SECONDS,
    read,
    running_engine,
    status_of,
)


async def test_new_watcher_gets_the_snapshot_then_the_changes():
    async with running_engine() as engine:
        engine.core.step(stored=[1, 2, 2**64 - 1])
        engine.core.step(stored=[4], removed=[1])
        await _reached(engine, 3)
        call = _watch(engine)
        snapshot = await read(call)
        assert snapshot.sequence_number == 2
        assert (snapshot.snapshot.first, snapshot.snapshot.last) == (True, True)
        assert snapshot.snapshot.part_number == 1
        assert set(snapshot.snapshot.block_hashes) == {2, 4, 2**64 - 1}

        engine.core.step(stored=[5], removed=[2])
        delta = await read(call)
        assert (delta.epoch, delta.sequence_number) == (snapshot.epoch, 3)
        assert list(delta.delta.stored_block_hashes) == [5]
        assert list(delta.delta.removed_block_hashes) == [2]


async def test_watch_of_an_empty_cache_opens_at_once_with_an_empty_snapshot():
    async with running_engine() as engine:
        call = _watch(engine)
        await asyncio.wait_for(call.initial_metadata(), WAIT_SECONDS)
        snapshot = await read(call)
        assert snapshot.epoch != 0
        assert (snapshot.sequence_number, len(snapshot.snapshot.block_hashes)) == (0, 0)
        assert snapshot.snapshot.first
        assert snapshot.snapshot.last
        assert await engine.metric("cache_watchers") == 1


async def test_step_without_changes_is_no_change():
    async with running_engine() as engine:
        call = _watch(engine)
        await read(call)
        engine.core.step()
        engine.core.step(stored=[8])
        assert (await read(call)).sequence_number == 1


async def test_watcher_that_comes_back_gets_only_what_it_lacks():
    async with running_engine() as engine:
        for number in (1, 2, 3):
            engine.core.step(stored=[number])
        await _reached(engine, 3)
        epoch = (await read(_watch(engine))).epoch
        call = _watch(engine, epoch, 1)
        changes = [await read(call) for _ in range(2)]
        assert [change.sequence_number for change in changes] == [2, 3]
        assert [list(change.delta.stored_block_hashes) for change in changes] == [[2], [3]]


async def test_watch_that_lacks_nothing_opens_at_once_and_waits():
    async with running_engine() as engine:
        engine.core.step(stored=[1])
        await _reached(engine, 1)
        epoch = (await read(_watch(engine))).epoch
        call = _watch(engine, epoch, 1)
        await asyncio.wait_for(call.initial_metadata(), WAIT_SECONDS)
        engine.core.step(removed=[1])
        assert (await read(call)).sequence_number == 2


async def test_exit_of_the_engine_ends_the_watch():
    async with running_engine() as engine:
        call = _watch(engine)
        await read(call)
        await engine.server.drain()
        assert (await status_of(call)).reason == "DRAINING"


async def test_watcher_of_another_epoch_gets_a_snapshot():
    async with running_engine() as engine:
        engine.core.step(stored=[1])
        await _reached(engine, 1)
        call = _watch(engine, 12345, 1)
        assert (await read(call)).WhichOneof("change") == "snapshot"


async def test_model_info_tells_the_epoch_of_the_watch():
    async with running_engine() as engine:
        info = await engine.stub.GetModelInfo(engine_pb2.GetModelInfoRequest())
        assert (await read(_watch(engine))).epoch == info.epoch


async def test_death_of_the_core_ends_the_watch():
    async with running_engine() as engine:
        call = _watch(engine)
        await read(call)
        engine.core.die()
        await asyncio.wait_for(engine.server.wait_core_lost(), WAIT_SECONDS)
        assert (await status_of(call)).reason == "ENGINE_FAILED"


async def test_watcher_that_does_not_read_is_cut_off():
    async with running_engine(max_cache_history_hashes=100_000) as engine:
        call = _watch(engine)
        await read(call)
        # More than the transport holds on the way, then more than the history does.
        for start in range(0, 2_000_000, 50_000):
            engine.core.step(stored=range(start, start + 50_000))
        await _reached(engine, 2_000_000)
        status = await status_of(call)
        assert (status.code, status.reason) == (8, "SLOW_READER")
        assert int(status.metadata["oldest_sequence_number"]) > 1
        assert await engine.metric("slow_readers_total") == 1


def _watch(engine, epoch=0, sequence_number=0):
    return engine.stub.WatchCache(
        engine_pb2.WatchCacheRequest(epoch=epoch, sequence_number=sequence_number)
    )


async def _reached(engine, num_hashes):
    """Waits until the server has taken in what the core said."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await engine.metric("cached_blocks") != num_hashes:
            pass
