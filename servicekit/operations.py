"""The HTTP endpoints of a service's operations port: Prometheus metrics and probes.

They run on the event loop that serves requests, so that a hanging loop fails its liveness probe.
The text of the metrics is made in a thread, one at a time.
"""

import asyncio
import functools
import http
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8

from servicekit.health import Health
from servicekit.http_server import Answer, Handler


def operations_handlers(
    registry: CollectorRegistry,
    health: Health[Any],
    before_scrape: Callable[[], None] | None = None,
) -> dict[str, Handler]:
    """Returns the handlers of a service's operations port, by path.

    Args:
        registry: The metrics of a scrape.
        health: The state that the probes report.
        before_scrape: Called on the event loop before each scrape.
    """
    return {
        "/metrics": metrics_handler(registry, before_scrape),
        "/livez": probe_handler(lambda: (health.is_live, health.state.value)),
        "/readyz": probe_handler(lambda: (health.is_ready, health.state.value)),
    }


def metrics_handler(
    registry: CollectorRegistry, before_scrape: Callable[[], None] | None = None
) -> Handler:
    """Returns the handler of a scrape.

    Args:
        registry: The metrics of a scrape.
        before_scrape: Called on the event loop before each scrape.
    """
    # Many at once would keep the interpreter from the event loop.
    encoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def answer(accepted: str) -> Answer:
        encode, content_type = _choose_encoder(accepted)
        if before_scrape is not None:
            before_scrape()
        body = await asyncio.get_running_loop().run_in_executor(encoding, encode, registry)
        return Answer(content_type=content_type, body=body)

    return answer


def probe_handler(check: Callable[[], tuple[bool, str]]) -> Handler:
    """Returns the handler of a probe; `check` returns whether it passes, and the state."""

    async def answer(_: str) -> Answer:
        is_well, state = check()
        status = http.HTTPStatus.OK if is_well else http.HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status=status, body=f"{state}\n".encode())

    return answer


def _choose_encoder(accepted: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        encode, content_type = choose_encoder(accepted)
    except (TypeError, ValueError):
        # The header asks for a version that is not a number.
        encode, content_type = choose_encoder("")
    if isinstance(encode, functools.partial):
        # No name of ours needs to be escaped, but prometheus_client 0.26 writes the colon in a
        # sample's name as an underscore under every other scheme.
        encode = functools.partial(encode.func, **{**encode.keywords, "escaping": ALLOWUTF8})
    return encode, content_type
