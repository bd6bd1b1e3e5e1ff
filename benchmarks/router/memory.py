"""Memory of a router process, at rest and with a full index, and placement over that index."""

import importlib.util
import time
from pathlib import Path
from typing import Any

from benchmarks.router.processes import Processes, cores
from benchmarks.router.services import Service, start_engine, start_router
from examples.demo.services import http_get

NUM_ENGINES = 64
NUM_BLOCKS = 5_000_000
_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.5
_INDEX_BLOCKS = "pagestream_router_index_blocks"


def measure(processes: Processes, tokenizer: Path) -> dict[str, Any]:
    """Returns the megabytes (10^6 bytes) of router processes and the result of `placement`."""
    with processes.scope() as inner:
        engine = start_engine(inner, tokenizer, step_seconds=0.01)
        at_rest = start_router(inner, engine.address).process.resident_mb()
        with_http = start_router(inner, engine.address, with_http=True).process.resident_mb()
    with processes.scope() as inner:
        arguments = ["--engines", str(NUM_ENGINES), "--blocks", str(NUM_BLOCKS)]
        engines = inner.start(
            "engines", ["benchmarks.router.cached_engines", *arguments], core=cores().engines
        )
        engines.wait_until(lambda: engines.log.read_text().endswith("\n"))
        addresses = engines.log.read_text().strip()
        with inner.scope() as once:
            router = start_router(once, addresses)
            _wait_until_indexed(router)
            full = router.process.resident_mb()
        arguments = ["--engines", addresses, "--blocks", str(NUM_BLOCKS)]
        fleet = inner.start(
            "fleet", ["benchmarks.router.placement", *arguments], core=cores().router
        )
        placement = fleet.result(_WAIT_SECONDS)
    return {
        "torch_is_installed": importlib.util.find_spec("torch") is not None,
        "router_at_rest_mb": at_rest,
        "router_with_http_door_at_rest_mb": with_http,
        "router_with_full_index_mb": full,
        **placement,
    }


def _wait_until_indexed(router: Service) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while _num_indexed(router) < 0.99 * NUM_BLOCKS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the router has indexed only {_num_indexed(router)} blocks")
        time.sleep(_POLL_SECONDS)


def _num_indexed(router: Service) -> float:
    for line in http_get(router.operations_address, "/metrics").splitlines():
        if line.startswith(_INDEX_BLOCKS + " "):
            return float(line.split()[1])
    return 0.0
