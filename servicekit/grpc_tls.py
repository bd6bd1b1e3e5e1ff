"""TLS of gRPC's ports and channels."""

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import grpc

from servicekit.rate_limit import RateLimit
from servicekit.tls import Tls, TlsSource

_NAMES = ("peer_dns", "peer_uri", "x509_common_name")
"""What gRPC calls the names of a verified certificate that identify a client."""
_LOG_SECONDS = 5.0

_logger = logging.getLogger(__name__)


def port_adder(server: grpc.aio.Server, source: TlsSource | None) -> Callable[[str], int]:
    """Returns the server's function that adds a port: with TLS if there is a source."""
    if source is None:
        return server.add_insecure_port

    def add(address: str) -> int:
        # Each port learns for itself of new certificates, so each has its own credentials.
        return server.add_secure_port(address, _server_credentials(source))

    return add


def channel_credentials(source: TlsSource) -> grpc.ChannelCredentials:
    """Returns the credentials of a new channel."""
    tls = source.current()
    return grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)


def _server_credentials(source: TlsSource) -> grpc.ServerCredentials:
    served = source.current()

    # gRPC calls it for each new connection, on a thread of its own.
    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        current = source.current()
        if current is served:
            return None
        served = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        newer,  # type: ignore[arg-type]
        require_client_authentication=source.files.ca is not None,
    )


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    assert tls.key is not None, "a server has one"
    assert tls.cert is not None, "a server has one"
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.cert)], tls.ca)


class ClientNames:
    """The names of which a client's certificate must have one: DNS, URI or common name.

    Args:
        names: Compared as they are written.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(name.encode() for name in names)
        self._limit = RateLimit(1, _LOG_SECONDS)

    async def check(self, method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Ends a call with PERMISSION_DENIED unless its client has one of the names."""
        properties: dict[str, list[bytes]] = context.auth_context()  # type: ignore[assignment]
        shown = list(dict.fromkeys(name for key in _NAMES for name in properties.get(key, ())))
        if not self._names.isdisjoint(shown):
            return
        names = ",".join(name.decode(errors="replace") for name in shown[:8])
        num_held = self._limit.take(time.monotonic())
        if num_held is not None:
            _logger.warning(
                "client refused method=%s peer=%s num_unlogged=%d error=its certificate names %s, "
                "which is not in --tls-client-names",
                method,
                context.peer(),
                num_held,
                names or "nobody",
            )
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            f"the client's certificate names {names[:256] or 'nobody'}, which this engine does not "
            "serve",
        )
