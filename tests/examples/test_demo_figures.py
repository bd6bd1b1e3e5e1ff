"""The demo counts GPUs and memory, or says in a sentence why it cannot."""

import asyncio
import sys

import pytest

from examples.demo import figures
from examples.demo.errors import DemoFailedError
from examples.demo.figures import EngineFigures, gpu_count, gpu_memory_bytes, watch
from examples.demo.services import Services
from tests.examples.test_demo_services import STAND_IN, ignore


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program of that name, which runs a line of shell, before all others."""

    def install(line):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_gpu_memory_is_what_nvidia_smi_says_in_mebibytes(nvidia_smi):
    nvidia_smi('[ "$1" = --id=3 ] && echo 1659')
    assert gpu_memory_bytes(3) == 1659 * 2**20


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("echo No devices were found; exit 6", "exit code 6 and says 'No devices were found'"),
        ("echo [N/A]", r"exit code 0 and says '\[N/A\]'"),
        ("exit 9", "exit code 9 and says 'nothing'"),
        ("while :; do :; done", "timed out"),
    ],
)
def test_failure_of_nvidia_smi_is_one_sentence(nvidia_smi, monkeypatch, line, words):
    if "while" in line:
        monkeypatch.setattr(figures, "_COMMAND_SECONDS", 0.1)
    nvidia_smi(line)
    with pytest.raises(
        DemoFailedError, match=f"cannot learn the memory in use on GPU 0: .*{words}"
    ):
        gpu_memory_bytes(0)


def test_missing_nvidia_smi_means_no_gpu_and_no_question(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/missing")
    assert gpu_count() == 0


def test_failure_to_count_gpus_is_one_sentence(nvidia_smi, tmp_path, monkeypatch):
    nvidia_smi("")
    torchless = tmp_path / "python"
    torchless.write_text("#!/bin/sh\necho No module named torch >&2; exit 1\n")
    torchless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(torchless))
    with pytest.raises(DemoFailedError, match=r"the number of GPUs: .*'No module named torch'"):
        gpu_count()


METRICS = """\
pagestream_engine_kv_cache_blocks{model_name="demo"} 10
pagestream_engine_kv_cache_free_blocks{model_name="demo"} 7
"""


async def test_sample_adds_used_blocks_and_memory_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "http_get", lambda address, path: METRICS)
    async with Services(tmp_path) as services:
        service = services.start("engine-0", [STAND_IN, "good"])
        await services.wait_ready([service], 30, ignore)
        engine = EngineFigures(service=service, gpus=())
        await engine.sample()
    assert engine.num_used_blocks == [3]
    # A Python that serves HTTP: more than 4 MiB, less than 400.
    assert 4 < engine.memory_bytes[0] >> 20 < 400


async def test_engine_whose_metrics_cannot_be_read_is_named(tmp_path):
    async with Services(tmp_path) as services:
        engine = EngineFigures(service=services.start("engine-0", [STAND_IN, "silent"]), gpus=())
        with pytest.raises(DemoFailedError, match="metrics of engine-0 cannot be read"):
            await engine.sample()


async def test_sample_under_way_when_the_watch_ends_is_not_added(tmp_path, monkeypatch):
    loop = asyncio.get_running_loop()
    is_reading, may_end = asyncio.Event(), asyncio.Event()

    def read_slowly(address, path):
        loop.call_soon_threadsafe(is_reading.set)
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(timeout=30)
        return METRICS

    monkeypatch.setattr(figures, "http_get", read_slowly)
    async with Services(tmp_path) as services:
        engine = EngineFigures(service=services.start("engine-0", [STAND_IN, "silent"]), gpus=())
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watch([engine]))
            await is_reading.wait()
            watcher.cancel()
    may_end.set()
    await loop.shutdown_default_executor()
    assert (engine.memory_bytes, engine.num_used_blocks) == ([], [])
