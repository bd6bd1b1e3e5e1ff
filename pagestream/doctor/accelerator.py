"""The checks of GPU, driver, torch and what Triton needs to build its launchers."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pagestream.doctor.finding import Finding, State
from pagestream.environment import python_modules
from pagestream.gpus import count_gpus, query, visible_gpus
from pagestream.packages import check_engine_packages
from servicekit.errors import StartupError

_SECONDS = 120.0
_ENGINE = "engine packages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the checks look at; tests have their own.

    Attributes:
        num_gpus: GPUs of the machine.
        query: Asks nvidia-smi.
        report: Returns what `torch_report` prints.
        has_torch: Whether torch is installed.
        check_packages: Raises StartupError where an engine lacks a package.
    """

    num_gpus: int
    query: Callable[[list[str]], list[list[str]] | None] = query
    report: Callable[[], Mapping[str, Any]]
    has_torch: bool
    check_packages: Callable[[], None] = check_engine_packages


def this_machine() -> Machine:
    """Returns the machine that this runs on."""
    return Machine(
        num_gpus=count_gpus(), report=_torch_report, has_torch=find_spec("torch") is not None
    )


def accelerator_findings(machine: Machine, environment: Mapping[str, str]) -> list[Finding]:
    """Returns what an engine would find here."""
    found = [_gpu(machine, environment)]
    if not machine.has_torch:
        detail = "torch is not installed, so routers run here and engines do not; "
        return [*found, Finding(_ENGINE, State.NOTE, f"{detail}{_install()}")]
    try:
        machine.check_packages()
    except StartupError as error:
        found.append(Finding(_ENGINE, State.MISSING, error.message))
    else:
        found.append(Finding(_ENGINE, State.OK, "all are installed"))
    try:
        report = machine.report()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        detail = f"torch cannot be imported ({_reason(error)}); install it again"
        return [*found, Finding("torch", State.MISSING, detail)]
    return [*found, _torch(machine, report), _toolchain(machine, report)]


def _gpu(machine: Machine, environment: Mapping[str, str]) -> Finding:
    try:
        visible = visible_gpus(environment, machine.num_gpus)
    except StartupError as error:
        return Finding("GPU", State.MISSING, error.message)
    if not machine.num_gpus:
        return Finding("GPU", State.NOTE, "there is none, so engines run on the CPU, slowly")
    listed = machine.query(["name", "memory.total", "driver_version"])
    if listed is None:
        detail = "there are device files, but nvidia-smi gives no answer; install NVIDIA's driver"
        return Finding("GPU", State.MISSING, detail)
    name, memory, driver = listed[0]
    detail = f"{len(listed)} x {name}, {memory}, driver {driver}"
    if len(visible) < len(listed):
        return Finding(
            "GPU", State.NOTE, f"{detail}; CUDA_VISIBLE_DEVICES shows {len(visible)} of them"
        )
    return Finding("GPU", State.OK, detail)


def _torch(machine: Machine, report: Mapping[str, Any]) -> Finding:
    cuda = f"CUDA {report['cuda']}" if report["cuda"] else "the CPU alone"
    detail = f"{report['torch']}, for {cuda}"
    if not machine.num_gpus:
        return Finding("torch", State.OK, detail)
    if not report["cuda"]:
        detail += "; install a build for CUDA, such as PyPI's, for engines to use the GPU"
        return Finding("torch", State.MISSING, detail)
    if report["fault"]:
        detail += f", but it cannot use the GPU: {report['fault']}; install a newer driver, or a "
        detail += "build of torch for an older CUDA"
        return Finding("torch", State.MISSING, detail)
    old = [one for one in report["gpus"] if int(one.partition(".")[0]) < 8]
    if old:
        detail += f"; the GPU's compute capability is {old[0]}, but Triton needs 8.0: serve with "
        return Finding("torch", State.MISSING, f"{detail}--device cpu, or use a newer GPU")
    return Finding("torch", State.OK, detail)


def _toolchain(machine: Machine, report: Mapping[str, Any]) -> Finding:
    name = "compiler and headers"
    if report["tool"] is None:
        return Finding(name, State.OK, "Triton finds a C compiler and Python.h")
    # Kernels are compiled for GPUs only.
    state = State.MISSING if machine.num_gpus else State.NOTE
    return Finding(name, state, report["tool"] + ("" if machine.num_gpus else " once it has a GPU"))


def _torch_report() -> Mapping[str, Any]:
    done = subprocess.run(
        [*python_modules(), "pagestream.doctor.torch_report"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise OSError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    report: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _install() -> str:
    return f"for engines, run {sys.executable} -m pip install 'pagestream[engine]'"


def _reason(error: Exception) -> str:
    return str(error)[:300] or type(error).__name__
