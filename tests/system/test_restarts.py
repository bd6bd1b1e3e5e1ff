"""Engines and routers end and come back under load; no stream hangs, and nothing is left over."""

import signal

import grpc
import pytest

from tests.system.fleets import check, fleet_of, run_all, streams_of

TWO = ((), ())


async def test_engine_that_is_killed_and_restarted_in_place_begins_with_an_empty_index(tmp_path):
    async with fleet_of(tmp_path, *TWO) as fleet, fleet.client() as stub:
        victim, survivor = fleet.engines
        before = streams_of()
        await run_all(stub, before)
        num_indexed = await fleet.metric("engine_index_blocks", engine=victim.address)

        async def restart():
            await victim.end()
            await victim.start()

        streams = streams_of()
        await run_all(stub, streams, restart)

        check([*before, *streams])
        assert await fleet.metric("failovers_total") > 0
        await fleet.wait_serving(victim, survivor)
        # What it held before is not what it holds now, and the index knows.
        await fleet.check_nothing_left(victim, survivor)
        assert await fleet.metric("engine_index_blocks", engine=victim.address) < num_indexed
        again = streams_of()
        await run_all(stub, again)
        check(again)
        await fleet.check_nothing_left(victim, survivor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_router_that_ends_under_load_leaves_nothing_and_another_takes_its_port(
    tmp_path, number
):
    options = ("--drain-grace-seconds", "0.1")
    async with fleet_of(tmp_path, *TWO, router_options=options) as fleet:
        streams = streams_of()

        async def restart():
            code = await fleet.router.end(number)
            assert code == (0 if number == signal.SIGTERM else -number)
            await fleet.router.start()

        async with fleet.client() as stub:
            await run_all(stub, streams, restart)

        for stream in streams:
            assert stream.error.code() is grpc.StatusCode.UNAVAILABLE
            assert 0 < len(stream.token_ids) < 100
            assert not stream.fault_so_far
            if number == signal.SIGTERM:
                assert stream.status.reason == "DRAINING"
        await fleet.wait_serving(*fleet.engines)
        await fleet.check_nothing_left(*fleet.engines)
        again = streams_of()
        async with fleet.client() as stub:
            await run_all(stub, again)
        check(again)
        await fleet.check_nothing_left(*fleet.engines)


async def test_engine_that_comes_late_gets_its_share(tmp_path):
    options = ("--placement", "round_robin")
    async with fleet_of(tmp_path, *TWO, router_options=options, is_started=False) as fleet:
        early, late = fleet.engines
        await early.start()
        await fleet.wait_serving(early)
        first, second = streams_of(), streams_of()
        async with fleet.client() as stub:
            await run_all(stub, first, late.start)
            await fleet.wait_serving(early, late)
            await fleet.note_tasks()
            await run_all(stub, second)

        check([*first, *second])
        assert {stream.engine for stream in second} == {early.address, late.address}
        await fleet.check_nothing_left(early, late)
