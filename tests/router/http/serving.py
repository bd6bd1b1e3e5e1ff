"""The HTTP door on a fake fleet, for tests."""

from contextlib import asynccontextmanager

import httpx

from router.http.door import HttpDoor
from router.http.keep_alive import KeepAlive
from router.http.service import Service
from router.request.pipeline import Bounds, Pipeline
from router.request.slow_readers import SlowReaders
from router.server.metrics import RouterMetrics
from router.text.tokenizer_pool import TokenizerPool

MAX_BODY_BYTES = 100_000


@asynccontextmanager
async def serving(fleet, **options):
    """Yields the port of a door in front of a pipeline to `fleet`."""
    async with opening(fleet, **options) as (_, _, port):
        yield port


@asynccontextmanager
async def opening(  # noqa: PLR0913
    fleet,
    *,
    max_concurrent_requests=8,
    max_request_bytes=10**8,
    slow_readers=None,
    silence_seconds=15.0,
    tls=None,
    keyring=None,
):
    """Yields a door in front of a pipeline to `fleet`, the pipeline and the port."""
    with TokenizerPool(fleet.fetch_tokenizer, 1) as tokenizers:
        pipeline = Pipeline(
            fleet,
            tokenizers,
            RouterMetrics(),
            Bounds(
                max_concurrent_requests=max_concurrent_requests,
                max_prompt_bytes=10_000,
                max_request_bytes=max_request_bytes,
                max_queued_prompt_tokens=2000,
            ),
        )
        service = Service(
            pipeline=pipeline,
            models=fleet.models,
            slow_readers=slow_readers or SlowReaders(60.0),
            max_body_bytes=MAX_BODY_BYTES,
            keyring=keyring,
            keep_alive=KeepAlive(silence_seconds),
        )
        door = HttpDoor(service, max_concurrent_requests, tls)
        try:
            yield door, pipeline, await door.start("127.0.0.1", 0)
        finally:
            await door.stop()


@asynccontextmanager
async def client_of(fleet, **options):
    """Yields an HTTP client of such a door."""
    async with (
        serving(fleet, **options) as port,
        # Loading certificates takes longer than most tests.
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, verify=False) as client,
    ):
        yield client
