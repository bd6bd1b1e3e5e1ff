"""Looks at a fleet: what routers list, and what routers and engines count."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import httpx

from pagestream.connection import Connection, client_context
from pagestream.router_client import describe
from pagestream.top.metrics_page import HISTOGRAMS, PAGE_SECONDS, BadPage, fetch_page
from pagestream.top.options import TopConfig
from pagestream.top.window import Latency, Window
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.printable import shown

MAX_ENGINES = 1024
"""More than a router that is in order has."""
_LIST_SECONDS = 2.0
_RETRY_SECONDS = 5.0
"""An operations port that did not answer is left alone for so long."""
_MAX_CONNECTIONS = 64
_FIRST_TOKEN, _BETWEEN_TOKENS = HISTOGRAMS
_Listed = list[router_pb2.Engine]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFigures:
    """One router; None is unknown, and rates are per second of the last ten.

    Attributes:
        error: Why it does not list its engines; empty if it does.
        metrics_error: Why its metrics are not known.
        hit_rate: Share of the prompts' tokens that engines had cached.
    """

    address: str
    error: str = ""
    metrics_error: str = ""
    num_engines: int | None = None
    num_serving_engines: int | None = None
    num_in_flight: int | None = None
    requests_per_second: float | None = None
    failures_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    tokens_per_second: float | None = None
    hit_rate: float | None = None
    first_token_seconds: Latency = field(default_factory=Latency)
    between_tokens_seconds: Latency = field(default_factory=Latency)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """One engine, as the first router sees it that lists it; None is unknown.

    Attributes:
        state: Such as "serving".
        detail: Why it is not serving.
        metrics_error: Why its metrics are not known.
        cache_usage: Share of the blocks that running requests hold.
        hit_rate: Share of the tokens looked up that the prefix cache had.
    """

    address: str
    router: str
    state: str
    model: str
    detail: str = ""
    metrics_error: str = ""
    num_running: int
    num_waiting: int
    cache_usage: float | None = None
    hit_rate: float | None = None
    tokens_per_second: float | None = None
    first_token_seconds: Latency = field(default_factory=Latency)
    between_tokens_seconds: Latency = field(default_factory=Latency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One look at the fleet. Texts are cut, and may hold anything printable or not."""

    routers: Sequence[RouterFigures]
    engines: Sequence[EngineFigures]


class FleetReader:
    """Looks at a fleet again and again; an async context manager."""

    def __init__(self, config: TopConfig) -> None:
        self._config = config
        self._channels = [config.connection.aio_channel(router) for router in config.routers]
        ca = config.options.operations_tls_ca
        # No proxy of the environment: services are reached by address.
        self._client = httpx.AsyncClient(
            verify=client_context(ca) if ca is not None else False,
            trust_env=False,
            headers={"accept": "text/plain", "accept-encoding": "identity"},
            timeout=PAGE_SECONDS,
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS),
        )
        self._scheme = "http" if ca is None else "https"
        self._sources: dict[str, _Source] = {}

    async def __aenter__(self) -> "FleetReader":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()
        for channel in self._channels:
            await channel.close()

    async def read(self) -> Snapshot:
        """Looks once; what does not answer is in the snapshot as such."""
        routers, options = self._config.routers, self._config.options
        connection = self._config.connection
        lists = await asyncio.gather(
            *(
                _list_engines(router, channel, connection)
                for router, channel in zip(routers, self._channels, strict=True)
            )
        )
        engines: dict[str, tuple[str, router_pb2.Engine]] = {}
        for router, (listed, _) in zip(routers, lists, strict=True):
            for engine in listed or ():
                if len(engines) < MAX_ENGINES:
                    engines.setdefault(engine.address, (router, engine))
        wanted = {
            **{one: options.router_operations.of(one, routers) for one in routers},
            **{one: options.engine_operations.of(one, list(engines)) for one in engines},
        }
        await self._read_pages({source for source in wanted.values() if source})
        return Snapshot(
            routers=[
                _router_figures(router, listed, error, self._source(wanted[router]))
                for router, (listed, error) in zip(routers, lists, strict=True)
            ],
            engines=[
                _engine_figures(engine, router, self._source(wanted[address]))
                for address, (router, engine) in engines.items()
            ],
        )

    async def _read_pages(self, addresses: set[str]) -> None:
        self._sources = {one: self._sources.get(one) or _Source(one) for one in addresses}
        name = self._config.options.operations_tls_name
        await asyncio.gather(
            *(source.read(self._client, self._scheme, name) for source in self._sources.values())
        )

    def _source(self, address: str) -> "_Source":
        return self._sources.get(address) or _Source("")


class _Source:
    """The operations port of one service, or of none."""

    def __init__(self, address: str) -> None:
        self.window = Window()
        self.error = "" if address else "the operations port is not known"
        self._address = address
        self._next_try = 0.0

    async def read(self, client: httpx.AsyncClient, scheme: str, tls_name: str) -> None:
        """Reads the page anew, unless that failed a moment ago."""
        if time.monotonic() < self._next_try:
            return
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                page = await fetch_page(client, f"{scheme}://{self._address}", tls_name)
        except (BadPage, TimeoutError) as error:
            self._fail(str(error) or f"no answer within {PAGE_SECONDS:g} s")
            return
        self.error = ""
        self.window.add(time.monotonic(), page)

    def _fail(self, error: str) -> None:
        self.window = Window()
        self.error = f"{self._address}: {error}"
        self._next_try = time.monotonic() + _RETRY_SECONDS

    def of(self, service: str, model: str) -> Window:
        """Returns the pages, or none if they are those of another service or model."""
        page = self.window.last
        if page is None:
            return Window()
        if page.service != service or (model and page.model != model):
            self._fail(f"the page is that of another {page.service}")
        return self.window


async def _list_engines(
    router: str, channel: grpc.aio.Channel, connection: Connection
) -> tuple[_Listed | None, str]:
    """Returns the engines, or why there are none."""
    stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
    try:
        response = await stub.ListEngines(
            router_pb2.ListEnginesRequest(),
            timeout=_LIST_SECONDS,
            metadata=connection.metadata,
        )
    except grpc.RpcError as error:
        return None, describe(router, error, connection.advice)
    return list(response.engines[:MAX_ENGINES]), ""


def _router_figures(
    address: str, listed: _Listed | None, error: str, source: _Source
) -> RouterFigures:
    window = source.of("router", "")
    figures = RouterFigures(
        address=address,
        error=error,
        metrics_error=source.error,
        requests_per_second=window.requests(),
        failures_per_second=window.failures(),
        prompt_tokens_per_second=window.rate("prompt_tokens_total"),
        tokens_per_second=window.rate("generated_tokens_total"),
        hit_rate=window.share("actual_cached_tokens_total", "prompt_tokens_total"),
        first_token_seconds=window.latency(_FIRST_TOKEN),
        between_tokens_seconds=window.latency(_BETWEEN_TOKENS),
    )
    if listed is None:
        return figures
    serving = router_pb2.EngineState.ENGINE_STATE_SERVING
    return dataclasses.replace(
        figures,
        num_engines=len(listed),
        num_serving_engines=sum(engine.state == serving for engine in listed),
        num_in_flight=sum(engine.in_flight_count for engine in listed),
    )


def _engine_figures(engine: router_pb2.Engine, router: str, source: _Source) -> EngineFigures:
    window = source.of("engine", engine.model)
    return EngineFigures(
        address=shown(engine.address),
        router=router,
        state=_state(engine.state),
        model=shown(engine.model),
        detail=shown(engine.detail, 500),
        metrics_error=shown(source.error, 500),
        num_running=engine.running_count,
        num_waiting=engine.waiting_count,
        cache_usage=_usage(engine.free_block_count, engine.total_block_count),
        hit_rate=window.share("prefix_cache_hit_tokens_total", "prefix_cache_query_tokens_total"),
        tokens_per_second=window.rate("generated_tokens_total"),
        first_token_seconds=window.latency(_FIRST_TOKEN),
        between_tokens_seconds=window.latency(_BETWEEN_TOKENS),
    )


def _usage(num_free: int, num_blocks: int) -> float | None:
    return 1 - num_free / num_blocks if 0 <= num_free <= num_blocks and num_blocks else None


def _state(state: router_pb2.EngineState) -> str:
    try:
        name = router_pb2.EngineState.Name(state)
    except ValueError:
        # Of a newer router.
        return "unknown"
    return name.removeprefix("ENGINE_STATE_").lower()
