"""Figures of the running engines: what their /metrics say, and the memory that they hold."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from examples.demo.errors import DemoFailedError
from examples.demo.services import Service, http_get

SAMPLE_SECONDS = 0.25
_COMMAND_SECONDS = 60.0


@dataclass(slots=True, kw_only=True)
class EngineFigures:
    """One engine over the run.

    Attributes:
        service: The engine.
        gpus: Indices of the GPUs it uses; none on the CPU.
        memory_bytes: One value a sample: what the GPUs hold in all, or else the engine's processes.
        num_used_blocks: One value a sample: KV blocks that sequences own.
        series: Value of each series without labels but the model's name at the last sample.
    """

    service: Service
    gpus: Sequence[int]
    memory_bytes: list[int] = field(default_factory=list)
    num_used_blocks: list[int] = field(default_factory=list)
    series: Mapping[str, float] = field(default_factory=dict)

    async def sample(self) -> None:
        """Adds one sample, or none when cancelled.

        Raises:
            DemoFailedError: Metrics or memory cannot be read.
        """
        # The thread outlives a cancellation; what it reads then is out of date.
        series, memory_bytes = await asyncio.to_thread(self._read)
        self.series = series
        self.memory_bytes.append(memory_bytes)
        num_free = series["pagestream_engine_kv_cache_free_blocks"]
        self.num_used_blocks.append(int(series["pagestream_engine_kv_cache_blocks"] - num_free))

    def _read(self) -> tuple[Mapping[str, float], int]:
        try:
            text = http_get(self.service.operations_address, "/metrics")
        except OSError as error:
            raise DemoFailedError(
                f"the metrics of {self.service.name} cannot be read: {error}"
            ) from error
        if not self.gpus:
            return _read_series(text), session_memory_bytes(self.service.process.pid)
        return _read_series(text), sum(gpu_memory_bytes(gpu) for gpu in self.gpus)


async def watch(engines: Sequence[EngineFigures]) -> None:
    """Samples every engine until cancelled."""
    while True:
        for engine in engines:
            await engine.sample()
        await asyncio.sleep(SAMPLE_SECONDS)


def gpu_count() -> int:
    """Returns how many GPUs torch can use here; without a driver, torch is not asked.

    Raises:
        DemoFailedError: Torch does not say.
    """
    if shutil.which("nvidia-smi") is None:
        return 0
    question = "import torch; print(torch.cuda.device_count())"
    return _number_from("the number of GPUs", [sys.executable, "-c", question])


def gpu_memory_bytes(gpu: int) -> int:
    """Returns what all processes together hold of a GPU's memory.

    Raises:
        DemoFailedError: nvidia-smi does not say.
    """
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used"]
    command.append("--format=csv,noheader,nounits")
    return _number_from(f"the memory in use on GPU {gpu}", command) << 20


def session_memory_bytes(session: int) -> int:
    """Returns the resident memory of all processes of a session; 0 where there is no /proc."""
    num_pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: state, parent, group, session, and so on.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                num_pages += int(fields[21])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def _number_from(what: str, command: Sequence[str]) -> int:
    """Runs a command that prints a number."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DemoFailedError(f"cannot learn {what}: {error}") from error
    if result.returncode == 0 and result.stdout.strip().isdecimal():
        return int(result.stdout)
    # nvidia-smi complains on its standard output.
    words = (result.stderr.strip() or result.stdout.strip() or "nothing").splitlines()[-1]
    raise DemoFailedError(
        f"cannot learn {what}: {command[0]} ended with exit code {result.returncode} and says "
        f"{words!r}"
    )


def _read_series(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels.keys() - {"model_name"}
    }
