"""The options of `pagestream top`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pagestream.connection import REFUSED, Connection, ConnectionOptions
from pagestream.entry import split_arguments
from pagestream.environment import api_key
from pagestream.router_client import DEFAULT_ROUTER, is_secure, router_address
from protos.wire.printable import shown
from servicekit.address import MAX_PORT, join, split
from servicekit.common_options import TLS_NAMES
from servicekit.errors import StartupError
from servicekit.options import OptionReader, Options, about
from servicekit.tls import TlsFiles, TlsSource, TlsUse
from servicekit.values import Flags, Paths, quoted, seconds

ROUTER_OPERATIONS_PORT = 8100
ENGINE_OPERATIONS_PORT = 8101
"""Those of the services, whose settings need packages that a client has not."""
ENVIRONMENT_PREFIX = "PAGESTREAM_TOP_"
_MAX_ROUTERS = 64


@dataclass(frozen=True, slots=True)
class Operations:
    """Where the operations ports of services are.

    Attributes:
        port: The same for all, each on the host of its service; 0 if they are named one by one.
        addresses: By the address of the service.
    """

    port: int = 0
    addresses: Mapping[str, str] = field(default_factory=dict)

    def of(self, service: str, services: Sequence[str]) -> str:
        """Returns the operations address of a service, or an empty text if it is not known.

        A port alone does not tell apart several services on one host.
        """
        if not self.port:
            return self.addresses.get(service, "")
        host = _host(service)
        is_alone = host and sum(_host(one) == host for one in services) == 1
        return join(host, self.port) if is_alone else ""

    def __str__(self) -> str:
        return str(self.port or ",".join("=".join(pair) for pair in self.addresses.items()))


class _OperationsValues:
    """A port, or pairs of addresses, SERVICE=OPERATIONS, separated by commas."""

    def parse(self, text: str) -> object:
        """Returns where the operations ports are, or the text."""
        try:
            if text.isascii() and text.isdecimal():
                return Operations(port=int(text)) if 1 <= int(text) <= MAX_PORT else text
            pairs = dict(_pair(one) for one in text.split(",")) if text else {}
        except ValueError:
            return text
        return Operations(addresses=pairs)

    def check(self, value: object) -> None:
        """Refuses what says no addresses."""
        if not isinstance(value, Operations):
            raise ValueError(
                f"is {quoted(value)}, must be a port from 1 to {MAX_PORT}, or pairs of addresses "
                "such as 127.0.0.1:50051=127.0.0.1:8101, separated by commas"
            )


def _pair(text: str) -> tuple[str, str]:
    service, _, operations = text.partition("=")
    split(service)
    split(operations)
    return service, operations


def _host(address: str) -> str:
    try:
        return split(address)[0]
    except ValueError:
        # A router may say anything of its engines.
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOptions(Options):
    """What is asked, how often, and how it is shown."""

    interval: float = field(
        default=1.0, metadata=about(seconds(0.2, 3600), "seconds between two looks")
    )
    once: bool = field(
        default=False,
        metadata=about(
            Flags(), "looks twice, an interval apart, prints one table and ends, as in a pipe"
        ),
    )
    json: bool = field(
        default=False, metadata=about(Flags(), "the same, and prints JSON instead of a table")
    )
    router_operations: Operations = field(
        default=Operations(port=ROUTER_OPERATIONS_PORT),
        metadata=about(
            _OperationsValues(),
            "operations port of the routers, on the hosts of their URLs; or pairs of addresses, "
            "ROUTER=HOST:PORT, separated by commas. Rates and latencies of a router come from "
            "there",
        ),
    )
    engine_operations: Operations = field(
        default=Operations(port=ENGINE_OPERATIONS_PORT),
        metadata=about(
            _OperationsValues(),
            "operations port of the engines, on their hosts, where no host has two of them; or "
            "pairs of addresses, ENGINE=HOST:PORT, separated by commas. Hit rates, rates and "
            "latencies of an engine come from there",
        ),
    )
    operations_tls_ca: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with certificates of CAs in PEM; all operations ports must then speak TLS and "
            "have a certificate of one of them",
            unset="plain text",
        ),
    )
    operations_tls_name: str = field(
        default="",
        metadata=about(
            TLS_NAMES,
            "name that their certificates must have; needs --operations-tls-ca",
            unset="the host of each address",
        ),
    )


GROUPS = {"Top": TopOptions, "Connection": ConnectionOptions}
READER = OptionReader(
    program="pagestream top [URL...]",
    description="Shows the engines of one or several routers, what they do and how fast, until "
    f"q or Ctrl-C. URL is the gRPC port of a router ({DEFAULT_ROUTER}). What is not known is "
    "shown as -.",
    prefix=ENVIRONMENT_PREFIX,
    groups=GROUPS,
    refused=REFUSED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopConfig:
    """All that the command line says."""

    routers: tuple[str, ...]
    connection: Connection
    options: TopOptions


def read_config(arguments: Sequence[str]) -> TopConfig:
    """Reads the command line; `--help` prints the options and exits.

    Raises:
        StartupError: Something in it is wrong; the message says what.
    """
    urls, options = split_arguments(arguments, GROUPS)
    given = READER.read(options)
    if len(urls) > _MAX_ROUTERS:
        raise StartupError(f"there are {len(urls)} URLs, more than {_MAX_ROUTERS}")
    routers = tuple(router_address(url) for url in urls or [DEFAULT_ROUTER])
    secure = {is_secure(url) for url in urls}
    if len(secure) > 1:
        raise StartupError("grpcs:// stands before some URLs; write it before all or none")
    for router in routers:
        if routers.count(router) > 1:
            raise StartupError(f"the router {shown(router)} is given twice")
    options_of_top = given.build(TopOptions)
    _check_operations_tls(options_of_top)
    return TopConfig(
        routers=routers,
        connection=Connection(given.build(ConnectionOptions), api_key(), is_secure=True in secure),
        options=options_of_top,
    )


def _check_operations_tls(options: TopOptions) -> None:
    if options.operations_tls_ca is not None:
        # It refuses a wrong file by name.
        TlsSource(TlsFiles(ca=options.operations_tls_ca, use=TlsUse.SERVICES))
    elif options.operations_tls_name:
        raise StartupError("--operations-tls-name needs --operations-tls-ca, too")
