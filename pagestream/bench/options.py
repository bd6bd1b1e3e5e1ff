"""The options of `pagestream bench`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pagestream.connection import REFUSED, Connection, ConnectionOptions
from pagestream.entry import split_arguments
from pagestream.environment import api_key
from pagestream.router_client import DEFAULT_ROUTER, is_secure, router_address
from protos.wire.limits import MAX_SEED, MAX_SEQUENCE_TOKENS
from protos.wire.printable import shown
from servicekit import values
from servicekit.address import split
from servicekit.common_options import MAX_SECONDS
from servicekit.errors import StartupError
from servicekit.options import OptionReader, Options, about
from servicekit.values import Flags, Integers, Names, Numbers, Paths, quoted

DEFAULT_REQUESTS = 100
_DEFAULT_CONCURRENCY = 8
_MAX_OPEN = 1024
"""Requests under way at once in an open loop, unless told otherwise."""
_HTTP = "http://"
ENVIRONMENT_PREFIX = "PAGESTREAM_BENCH_"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens between two bounds, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


class _LengthsValues:
    """A number of tokens, or two with a hyphen between them."""

    def parse(self, text: str) -> object:
        """Returns the bounds, or the text."""
        low, _, high = text.partition("-")
        try:
            return Lengths(int(low), int(high or low))
        except ValueError:
            return text

    def check(self, value: object) -> None:
        """Refuses what is none, or out of bounds."""
        if not isinstance(value, Lengths) or not (
            1 <= value.low <= value.high <= MAX_SEQUENCE_TOKENS
        ):
            text = str(value) if isinstance(value, Lengths) else value
            raise ValueError(
                f"is {quoted(text)}, must be a number of tokens, or a range such as 100-1024, "
                f"from 1 to {MAX_SEQUENCE_TOKENS}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions(Options):
    """How many requests are sent, and when."""

    requests: int | None = field(
        default=None,
        metadata=about(
            Integers(1, 1_000_000_000),
            "number of requests",
            unset=f"{DEFAULT_REQUESTS}, or any number with --seconds",
        ),
    )
    seconds: float | None = field(
        default=None,
        metadata=about(
            values.seconds(0.1, MAX_SECONDS),
            "seconds in which requests are begun; those under way are then waited for",
            unset="no bound",
        ),
    )
    concurrency: int | None = field(
        default=None,
        metadata=about(
            Integers(1, 65_536),
            "requests under way at once: each is sent when another has ended; with --rate, the "
            "most",
            unset=f"{_DEFAULT_CONCURRENCY}; with --rate {_MAX_OPEN}",
        ),
    )
    rate: float | None = field(
        default=None,
        metadata=about(
            Numbers(0.001, 1_000_000),
            "requests per second at random times (Poisson), whether others have ended or not; "
            "latencies count from the planned time",
            unset="none: as many as --concurrency says",
        ),
    )
    request_seconds: float = field(
        default=600.0,
        metadata=about(values.seconds(0.1, MAX_SECONDS), "seconds that a request may take"),
    )
    connections: int = field(
        default=1,
        metadata=about(
            Integers(1, 1024), "connections by gRPC; HTTP has one for each request under way"
        ),
    )

    @property
    def max_open(self) -> int:
        """Requests under way at once, at most."""
        return self.concurrency or (_DEFAULT_CONCURRENCY if self.rate is None else _MAX_OPEN)

    @property
    def max_requests(self) -> int | None:
        """Requests in all, if there is a bound."""
        return self.requests or (DEFAULT_REQUESTS if self.seconds is None else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions(Options):
    """What is asked."""

    model: str = field(
        default="", metadata=about(Names(), "name of the model", unset="the only one served")
    )
    prompt_tokens: Lengths = field(
        default=Lengths(128, 128),
        metadata=about(
            _LengthsValues(), "tokens of a prompt, or a range from which each is drawn: 100-1024"
        ),
    )
    output_tokens: Lengths = field(
        default=Lengths(64, 64),
        metadata=about(_LengthsValues(), "tokens of an answer, or a range: 100-1024"),
    )
    prefix_share: float = field(
        default=0.0,
        metadata=about(
            Numbers(0, 1), "share of each prompt, from its start, that other prompts have, too"
        ),
    )
    prefixes: int = field(
        default=1,
        metadata=about(Integers(1, 1_000_000), "number of such beginnings; each prompt has one"),
    )
    seed: int = field(
        default=0,
        metadata=about(
            Integers(0, MAX_SEED), "fixes prompts, lengths, times of --rate and sampling"
        ),
    )
    temperature: float = field(
        default=0.0, metadata=about(Numbers(0, 100), "divides the logits; 0 is greedy")
    )
    ignore_eos: bool = field(
        default=True,
        metadata=about(Flags(), "answers have their full length, whatever the model generates"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions(Options):
    """What becomes of the results."""

    plot: bool = field(
        default=True, metadata=about(Flags(), "prints histograms of the latencies, too")
    )
    output: Path | None = field(
        default=None, metadata=about(Paths(), "JSON file for the results", unset="none")
    )


GROUPS = {
    "Load": LoadOptions,
    "Workload": WorkloadOptions,
    "Connection": ConnectionOptions,
    "Report": ReportOptions,
}
READER = OptionReader(
    program="pagestream bench [URL]",
    description="Sends requests to a router and measures the answers. URL is its gRPC port "
    f"({DEFAULT_ROUTER}), or http://host:port or https://host:port for its HTTP port, or that of "
    "another server of OpenAI's completions.",
    prefix=ENVIRONMENT_PREFIX,
    groups=GROUPS,
    refused=REFUSED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """All that the command line says.

    Attributes:
        address: The router's, host:port.
        is_http: Whether it is spoken to by HTTP.
    """

    address: str
    is_http: bool
    connection: Connection
    load: LoadOptions
    workload: WorkloadOptions
    report: ReportOptions

    @property
    def url(self) -> str:
        """What is measured; only its address if it is spoken to by gRPC."""
        scheme = "https://" if self.connection.is_tls else _HTTP
        return f"{scheme if self.is_http else ''}{self.address}"


def read_config(arguments: Sequence[str]) -> BenchConfig:
    """Reads the command line; `--help` prints the options and exits.

    Raises:
        StartupError: Something in it is wrong; the message says what.
    """
    urls, options = split_arguments(arguments, GROUPS)
    given = READER.read(options)
    if len(urls) > 1:
        raise StartupError(f"there are {len(urls)} URLs, and the load is for one router")
    url = urls[0] if urls else DEFAULT_ROUTER
    is_http = url.startswith((_HTTP, "https://"))
    connection = Connection(given.build(ConnectionOptions), api_key(), is_secure=is_secure(url))
    if url.startswith(_HTTP) and connection.is_tls:
        raise StartupError(
            f"{shown(url)} is for plain text, but options of TLS are given; use https://"
        )
    return BenchConfig(
        address=_http_address(url) if is_http else router_address(url),
        is_http=is_http,
        connection=connection,
        load=given.build(LoadOptions),
        workload=given.build(WorkloadOptions),
        report=given.build(ReportOptions),
    )


def _http_address(url: str) -> str:
    scheme, _, address = url.partition("://")
    address = address.removesuffix("/").removesuffix("/v1")
    try:
        split(address)
    except ValueError as error:
        raise StartupError(f"the router is {shown(url)!r}, {error} behind {scheme}://") from None
    return address
