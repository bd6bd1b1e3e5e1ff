"""What becomes of an engine, and of what it has started, when one of its ranks ends or hangs."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load_file, save_file

from engine_service.server.health import SERVICE_NAME
from tests.engine_service.process_harness import REAL, engine_process, kill, wait_gone
from tests.engine_service.server.harness import generate_request, read, status_of
from tests.engine_service.tiny_models import Shape, make_model
from tests.kernels.gpu_ranks import on_gpus

SLOW = pytest.mark.slow
SILENCE = ["--core-silence-seconds", "2", "--frozen-core-exit-seconds", "3"]


RANKS = [
    pytest.param(("cpu", 2), id="2 on cpu"),
    pytest.param(("cpu", 4), id="4 on cpu", marks=SLOW),
    *(
        pytest.param(("cuda", number), id=f"{number} on cuda", marks=on_gpus(number))
        for number in (2, 4)
    ),
]
also_with_eight = pytest.mark.parametrize(
    "arguments",
    [
        *RANKS,
        pytest.param(("cpu", 8), id="8 on cpu", marks=SLOW),
        pytest.param(("cuda", 8), id="8 on cuda", marks=on_gpus(8)),
    ],
    indirect=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model for up to eight ranks, which then share its four key-value heads."""
    shape = Shape(num_heads=8, num_kv_heads=4, head_dim=16, is_tied=False)
    return make_model(tmp_path_factory.mktemp("ranks") / "model", shape).folder


@pytest.fixture(scope="module", params=RANKS)
def arguments(request, folder):
    device, num_ranks = request.param
    return [
        *("--model", str(folder), "--device", device, "--cpu-threads", "1"),
        *("--block-size", "16", "--num-blocks", "64", "--max-num-batched-tokens", "32"),
        *("--tensor-parallel-size", str(num_ranks)),
    ]


def rank_pids(core):
    """Returns the process IDs of all ranks but the first, which is the core."""
    pids = map(int, Path(f"/proc/{core}/task/{core}/children").read_text().split())
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def endless():
    return generate_request(1, max_tokens=500, temperature=0.0, ignore_eos=True)


@also_with_eight
@pytest.mark.parametrize(
    "is_busy", [pytest.param(False, id="idle", marks=SLOW), pytest.param(True, id="in mid-stream")]
)
async def test_killed_rank_ends_the_engine_and_its_requests(arguments, is_busy):
    async with engine_process(REAL, *arguments) as engine:
        await engine.wait_line("ready")
        core = engine.core_pid()
        rank, *others = rank_pids(core)
        children = engine.children()
        async with engine.stub() as stub:
            call = stub.Generate(endless()) if is_busy else None
            if call is not None:
                await read(call)
            kill(rank)
            if call is not None:
                status = await status_of(call)
                assert (status.code, status.reason) == (14, "ENGINE_FAILED")
        assert await engine.wait_end() == 1
        for pid in (*children, rank, *others):
            await wait_gone(pid)
    assert sum(
        "rank lost detail=rank 1: its process was ended by signal 9" in x for x in engine.lines
    )


@pytest.mark.parametrize(
    "is_busy", [pytest.param(False, id="idle"), pytest.param(True, id="in mid-stream", marks=SLOW)]
)
async def test_stopped_rank_ends_the_engine_and_is_ended_itself(arguments, is_busy):
    async with engine_process(REAL, *arguments, *SILENCE) as engine:
        await engine.wait_line("ready")
        rank, *others = rank_pids(engine.core_pid())
        children = engine.children()
        async with engine.stub() as stub, engine.channel() as channel:
            call = stub.Generate(endless()) if is_busy else None
            if call is not None:
                await read(call)
            os.kill(rank, signal.SIGSTOP)
            if call is not None:
                status = await status_of(call)
                assert (status.code, status.reason) == (14, "ENGINE_FAILED")
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
            while (await read(watch)).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                pass
        assert await engine.wait_end() == 1
        for pid in (*children, rank, *others):
            await wait_gone(pid)
    assert sum(" rank silent rank=1 seconds=" in line for line in engine.lines) == 1


@pytest.mark.parametrize(
    "is_stopped",
    [pytest.param(False, id="running rank", marks=SLOW), pytest.param(True, id="stopped rank")],
)
async def test_killed_server_leaves_no_rank(arguments, is_stopped):
    async with engine_process(REAL, *arguments) as engine:
        await engine.wait_line("ready")
        rank, *others = rank_pids(engine.core_pid())
        children = engine.children()
        if is_stopped:
            os.kill(rank, signal.SIGSTOP)
        engine.process.kill()
        for pid in (*children, rank, *others):
            await wait_gone(pid)


@also_with_eight
async def test_sigterm_drains_and_ends_all_ranks(arguments):
    async with engine_process(REAL, *arguments) as engine:
        await engine.wait_line("ready")
        ranks = rank_pids(engine.core_pid())
        async with engine.stub() as stub:
            call = stub.Generate(
                generate_request(1, max_tokens=100, temperature=0.0, ignore_eos=True)
            )
            received = len((await read(call)).token_ids)
            engine.process.send_signal(signal.SIGTERM)
            while (message := await read(call)) is not grpc.aio.EOF:
                received += len(message.token_ids)
        assert received == 100
        assert await engine.wait_end() == 0
        for pid in ranks:
            await wait_gone(pid)


async def test_killed_rank_while_loading_ends_the_start(arguments):
    async with engine_process(REAL, *arguments) as engine:
        await engine.wait_line("loading")
        core = await engine.wait_core()
        async with asyncio.timeout(60):
            while not rank_pids(core):  # noqa: ASYNC110 (nothing tells of it)
                await asyncio.sleep(0.01)
        kill(rank_pids(core)[0])
        assert await engine.wait_end() == 2
    assert "rank 1: its process was ended by signal 9" in engine.lines[-1]


async def test_rank_that_cannot_start_says_why_with_its_number(arguments, folder, tmp_path):
    spoilt = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(spoilt / "model.safetensors")
    # The last row is in the part of the last rank only.
    weights["model.layers.1.mlp.up_proj.weight"][-1, 3] = torch.nan
    last = int(arguments[-1]) - 1
    save_file(weights, spoilt / "model.safetensors")

    async with engine_process(REAL, *arguments, "--model", str(spoilt)) as engine:
        assert await engine.wait_end() == 2
    assert f"rank {last}: " in engine.lines[-1]
    assert "model.layers.1.mlp.up_proj.weight" in engine.lines[-1]
    assert "NaN" in engine.lines[-1]


@pytest.mark.slow
async def test_twenty_starts_leave_nothing_behind(arguments):
    def left():
        return sorted(os.listdir("/dev/shm"))

    before = left()
    for _ in range(20):
        async with engine_process(REAL, *arguments) as engine:
            await engine.wait_line("ready")
            ranks = rank_pids(engine.core_pid())
            engine.process.send_signal(signal.SIGTERM)
            assert await engine.wait_end() == 0
            for pid in ranks:
                await wait_gone(pid)
    assert left() == before
