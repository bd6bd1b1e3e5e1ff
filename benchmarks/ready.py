"""How long an engine takes to become ready: `python -m benchmarks.ready`.

Starts the service with random weights twice, first with an empty cache of compiled kernels, and
prints the seconds until `/readyz` says yes.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.shapes import SHAPES

_PORTS = ("--port", "50961", "--operations-port", "50962")
_URL = "http://127.0.0.1:50962/readyz"
_DEADLINE = 300.0
_POLL = 0.02


def _is_ready() -> bool:
    try:
        with urllib.request.urlopen(_URL, timeout=1.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


async def _measure(folder: Path, cache: Path) -> float:
    started_at = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine_service", "--model", str(folder)),
        *("--load-format", "dummy", *_PORTS),
        env=os.environ | {"TRITON_CACHE_DIR": str(cache)},
    )
    try:
        while not await asyncio.to_thread(_is_ready):
            if process.returncode is not None or time.monotonic() > started_at + _DEADLINE:
                raise SystemExit("the engine did not become ready; its log above says why")
            await asyncio.sleep(_POLL)
        return time.monotonic() - started_at
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def main() -> None:
    """Measures as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ready", description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="qwen3-0.6b")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES[options.model]))
        cache = Path(folder) / "kernels"
        for name in ("cold", "warm"):
            seconds = asyncio.run(_measure(Path(folder), cache))
            print(f"{options.model}, {name} cache of kernels: ready after {seconds:.1f} s")


if __name__ == "__main__":
    main()
