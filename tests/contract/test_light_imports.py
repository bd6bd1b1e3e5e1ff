"""Torch belongs to the core's process; the server and the command line do without."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "triton", "transformers", "kernels", "safetensors", "router"}


def modules_after(script):
    """Returns the top-level modules that a fresh interpreter has loaded after a script."""
    report = (
        "import json, sys\n"
        "loaded = {name.partition('.')[0] for name, module in sys.modules.items() if module}\n"
        "sys.stderr.write(json.dumps(sorted(loaded)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script + "\n" + report],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_needs_neither_torch_nor_grpc():
    modules = modules_after(
        "from engine_service.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
    )
    assert "engine_service" in modules
    assert not modules & (HEAVY | {"grpc", "google", "numpy", "prometheus_client", "asyncio"})


def test_server_process_imports_no_torch():
    modules = modules_after("import engine_service.launch")
    assert {"engine_service", "grpc", "prometheus_client"} <= modules
    assert not modules & HEAVY
    assert "smg_grpc_proto" not in modules, "only --vllm-grpc needs it"


def test_core_without_a_worker_imports_neither_torch_nor_grpc():
    modules = modules_after(
        "import engine_service.core_process\n"
        "import engine_service.core.engine_core, engine_service.core.inbox"
    )
    assert not modules & (HEAVY | {"asyncio", "grpc", "google", "numpy"})
