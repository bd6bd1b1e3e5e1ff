"""The checks of what has nothing to do with GPUs: Python, packages, memory, disk, ports, limits."""

import contextlib
import os
import platform
import resource
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from pagestream.doctor.finding import Finding, State
from pagestream.packages import check_router_packages
from pagestream.serve.options import READER
from servicekit.errors import StartupError
from servicekit.listening import listen

_GIB = 1 << 30
_MIN_SHARED_BYTES = _GIB
"""NCCL keeps buffers there, for each pair of GPUs."""
_MIN_DISK_BYTES = 20 * _GIB
_MIN_FILES = 8192
"""A router takes 4096 requests at once by default, and each may have a connection of its own."""
_HOST = "127.0.0.1"


def system_findings(environment: Mapping[str, str], num_gpus: int) -> list[Finding]:
    """Returns what any service would find here."""
    return [
        Finding("Python", State.OK, f"{platform.python_version()} in {sys.executable}"),
        _router_packages(),
        _shared_memory(Path("/dev/shm"), num_gpus),
        _disk(_cache_folder(environment)),
        _hub_token(environment),
        *(_port(name) for name in ("http_port", "port", "operations_port")),
        _file_limit(),
    ]


def _router_packages() -> Finding:
    name = "router packages"
    try:
        check_router_packages()
    except StartupError as error:
        # A machine may have engines alone.
        state = State.NOTE if find_spec("torch") is not None else State.MISSING
        return Finding(name, state, error.message)
    return Finding(name, State.OK, "all are installed")


def _shared_memory(folder: Path, num_gpus: int) -> Finding:
    name = f"shared memory ({folder})"
    if not os.access(folder, os.W_OK):
        detail = "it cannot be written; mount a tmpfs there, in a container with --shm-size 1g"
        return Finding(name, State.MISSING, detail)
    num_bytes = shutil.disk_usage(folder).total
    detail = _size(num_bytes)
    if num_bytes < _MIN_SHARED_BYTES and num_gpus > 1:
        detail += (
            ", too little for --tensor-parallel-size over GPUs; give a container --shm-size 1g"
        )
        return Finding(name, State.NOTE, detail)
    return Finding(name, State.OK, detail)


def _cache_folder(environment: Mapping[str, str]) -> Path:
    """Returns where the hub's library keeps models."""
    if "HF_HUB_CACHE" in environment:
        return Path(environment["HF_HUB_CACHE"]).expanduser()
    return _hub_home(environment) / "hub"


def _hub_home(environment: Mapping[str, str]) -> Path:
    cache = environment.get("XDG_CACHE_HOME", "~/.cache")
    return Path(environment.get("HF_HOME", f"{cache}/huggingface")).expanduser()


def _disk(folder: Path) -> Finding:
    name = f"disk for models ({folder})"
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        detail = f"{existing} cannot be written; set HF_HOME to a folder that can"
        return Finding(name, State.MISSING, detail)
    num_free = shutil.disk_usage(existing).free
    detail = f"{_size(num_free)} free"
    if num_free < _MIN_DISK_BYTES:
        detail += ", little for models of the hub; make room, or set HF_HOME to a larger disk"
        return Finding(name, State.NOTE, detail)
    return Finding(name, State.OK, detail)


def _hub_token(environment: Mapping[str, str]) -> Finding:
    name = "hub token"
    if environment.get("HF_TOKEN"):
        return Finding(name, State.OK, "in HF_TOKEN")
    file = Path(environment.get("HF_TOKEN_PATH", _hub_home(environment) / "token")).expanduser()
    with contextlib.suppress(OSError):
        if file.stat().st_size:
            return Finding(name, State.OK, f"in {file}")
    return Finding(name, State.NOTE, "none; set HF_TOKEN if a model of the hub asks for it")


def _port(name: str) -> Finding:
    default = READER.fields[name].default
    assert isinstance(default, int), "a port"
    port, option = default, name.replace("_", "-")
    title = f"port {port}"
    try:
        for listener in listen(_HOST, port, option):
            listener.close()
    except StartupError as error:
        return Finding(title, State.NOTE, error.message)
    return Finding(title, State.OK, f"free for serve's --{option}")


def _file_limit() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", State.OK, "no limit")
    if hard < _MIN_FILES:
        detail = f"at most {hard}, few for a router of many connections; raise it with ulimit -Hn "
        return Finding("open files", State.NOTE, f"{detail}{_MIN_FILES}, or LimitNOFILE of systemd")
    return Finding("open files", State.OK, f"at most {hard}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
