"""What certificates on both hops cost: plain text and mTLS, measured side by side.

    python -m benchmarks.router.tls --output benchmarks/results/router_tls.json

Two routers on one core, each before an engine that takes no time of its own: one pair speaks plain
text, the other shows certificates of both ends on both hops. One client calls both in turns, by
gRPC, over connections that are open. Tokens are delivered at the pace of an 8B model that decodes
64 streams, and the routers' processor time says what they could deliver. Takes three minutes.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc

from benchmarks import pairs
from benchmarks.provenance import commit, cpus
from benchmarks.router import large_tokenizer
from benchmarks.router.processes import Processes, cores
from benchmarks.router.services import Service, start_engine, start_router
from benchmarks.router.stream_client import ROUTER_PATH, Target
from pagestream.certs.authority import Authority
from protos.pagestream.router.v1 import router_pb2

_REQUESTS = 200
"""For the first token, to each router, in each pair."""
_STREAMS = 64
_STEP_SECONDS = 0.013
"""From token to token: 64 streams of an 8B model on an H200 get 4,900 tokens/s."""
_NUM_STEPS = 150
_NAMES = {pairs.BEFORE: "plain", pairs.AFTER: "mtls"}


def make_certificates(folder: Path) -> None:
    """Makes a CA, a server's certificate and a client's."""
    authority = Authority.create(folder, days=2)
    authority.issue("server", names=("DNS:localhost", "IP:127.0.0.1"), days=2, is_server=True)
    authority.issue("client", names=("DNS:client.test",), days=2, is_server=False)


def router_options(certs: Path) -> list[str]:
    """Returns a router's options for both hops."""
    server = ["--tls-cert", f"{certs}/server.pem", "--tls-key", f"{certs}/server.key"]
    server += ["--tls-client-ca", f"{certs}/ca.pem"]
    engine = ["--engine-tls-cert", f"{certs}/client.pem", "--engine-tls-key", f"{certs}/client.key"]
    return [*server, *engine, "--engine-tls-ca", f"{certs}/ca.pem"]


def _connect(address: str, certs: Path | None) -> grpc.aio.Channel:
    if certs is None:
        return grpc.aio.insecure_channel(address)
    ca, key, cert = ((certs / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert))


class Client:
    """Calls one router.

    Args:
        address: Its "host:port".
        certs: Where the certificates are; None speaks plain text.
    """

    def __init__(self, address: str, certs: Path | None) -> None:
        self.channel = _connect(address, certs)
        # Undecoded: the client shares a core with the engines.
        self._generate = self.channel.unary_stream(ROUTER_PATH)

    async def first_token_ms(self, body: bytes) -> float:
        """Returns the time to the first message with tokens."""
        started = time.perf_counter()
        call = self._generate(body)
        found = 0.0
        async for message in call:
            if not found and router_pb2.GenerateResponse.FromString(message).token_ids:
                found = time.perf_counter() - started
        return 1e3 * found

    async def stream(self, body: bytes) -> None:
        """Makes a call and reads it to its end."""
        async for _ in self._generate(body):
            pass


Values = dict[str, list[float]]


async def _first_tokens(clients: dict[str, Client], num_pairs: int) -> Values:
    target = Target("router", "text", num_prompt_tokens=128, max_tokens=2)
    rng = random.Random(0)
    values: Values = {name: [] for name in clients}
    for _ in range(num_pairs + 1):
        times: Values = {name: [] for name in clients}
        for _ in range(_REQUESTS):
            for name in rng.sample(sorted(clients), k=len(clients)):
                times[name].append(await clients[name].first_token_ms(target.body(rng)))
        for name, row in times.items():
            values[name].append(statistics.median(row))
    return {name: row[1:] for name, row in values.items()}


async def _streams(
    clients: dict[str, Client], routers: dict[str, Service], num_pairs: int
) -> dict[str, Values]:
    """Returns tokens/s delivered, and microseconds of the router's processor for a token."""
    target = Target("router", "tokens", num_prompt_tokens=128, max_tokens=_NUM_STEPS)
    rng = random.Random(0)
    rates: Values = {name: [] for name in clients}
    costs: Values = {name: [] for name in clients}
    for name in [*_NAMES, *pairs.turns(num_pairs)]:
        bodies = [target.body(rng) for _ in range(_STREAMS)]
        cpu, started = routers[name].process.cpu_seconds(), time.perf_counter()
        await asyncio.gather(*map(clients[name].stream, bodies))
        seconds = time.perf_counter() - started
        num_tokens = _STREAMS * _NUM_STEPS
        rates[name].append(num_tokens / seconds)
        costs[name].append(1e6 * (routers[name].process.cpu_seconds() - cpu) / num_tokens)
    # The first of each warms up.
    return {
        "tokens_per_s": {name: row[1:] for name, row in rates.items()},
        "router_cpu_us_per_token": {name: row[1:] for name, row in costs.items()},
    }


async def _measure(processes: Processes, folder: Path, num_pairs: int) -> dict[str, Any]:
    tokenizer = large_tokenizer.save(folder / "tokenizer")
    certs = folder / "certs"
    certs.mkdir()
    make_certificates(certs)
    figures: dict[str, Values] = {}
    for step_seconds in (0.001, _STEP_SECONDS):
        with processes.scope() as inner:
            routers, clients = {}, {}
            for name, found in ((pairs.BEFORE, None), (pairs.AFTER, certs)):
                options = [] if found is None else ["--certs", str(found)]
                engine = start_engine(inner, tokenizer, step_seconds=step_seconds, options=options)
                options = [] if found is None else router_options(found)
                routers[name] = start_router(inner, engine.address, options=options)
                clients[name] = Client(routers[name].address, found)
            if step_seconds == _STEP_SECONDS:
                figures |= await _streams(clients, routers, num_pairs)
            else:
                figures["first_token_ms"] = await _first_tokens(clients, num_pairs)
            for client in clients.values():
                await client.channel.close()
    return {name: _named(pairs.summary(values)) for name, values in figures.items()}


def _named(summary: dict[str, Any]) -> dict[str, Any]:
    return {_NAMES.get(key, key): value for key, value in summary.items() if key != "values"}


def main() -> None:
    """Measures and writes one JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router.tls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results (default: standard output)"
    )
    options = parser.parse_args()
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores().clients})
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with Processes(folder) as processes:
                figures = asyncio.run(_measure(processes, folder, options.pairs))
    finally:
        os.sched_setaffinity(0, own)
    results = {
        "command": "python -m benchmarks.router.tls " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": cpus() | {"grpcio": version("grpcio")},
        "pairs": options.pairs,
        "figures": figures,
    }
    text = json.dumps(results, indent=2) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
