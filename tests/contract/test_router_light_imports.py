"""The router stays small: no torch, no engine, also where both are installed beside it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# As `python -m router` does it, up to the point where it would serve.
SCRIPT = """
import sys
from router import __main__, config
code = __main__.main(["--engines", "127.0.0.1:1", "--insecure-host", "256.0.0.1"])
print(code)
print(*sorted({name.partition(".")[0] for name, module in sys.modules.items() if module}))
"""


def test_router_process_imports_neither_torch_nor_the_engine():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    code, modules = done.stdout.splitlines()
    assert code == "2", done.stderr
    assert done.stderr.count("\n") == 1, "one line, and no warning that torch is missing"
    imported = set(modules.split())
    assert {"router", "transformers", "tokenizers", "grpc"} <= imported
    assert not imported & {"torch", "triton", "engine_service", "kernels", "safetensors"}


def test_help_needs_no_library_of_weight():
    script = """
import sys
from router import __main__
try:
    __main__.main(["--help"])
finally:
    print(*sorted({name.partition(".")[0] for name, module in sys.modules.items() if module}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert "router" in imported
    assert not imported & {"transformers", "tokenizers", "torch", "numpy"}
