"""How the router connects to engines: in plain text, or with TLS that both ends check."""

import grpc

from protos.wire import channel
from servicekit.grpc_tls import channel_credentials
from servicekit.tls import TlsSource

_ENDED = "Socket closed"
_LATER = "Stream removed"
"""What gRPC says besides if that happens in the middle of a call: then they have agreed before."""
_NO_TLS = "WRONG_VERSION_NUMBER"
_WRONG_NAME = "Hostname Verification Check failed"


class EngineChannels:
    """Opens channels to engines.

    Args:
        source: The files of CA and certificate; None is plain text.
        name: The name that an engine's certificate must have; "" is the host of its address.
    """

    def __init__(self, source: TlsSource | None = None, name: str = "") -> None:
        self._source = source
        self._name = name

    def open(self, address: str) -> grpc.aio.Channel:
        """Returns a new channel, which connects with its first call.

        Args:
            address: "host:port" of the engine.
        """
        # One channel per attempt, so that the waits are the caller's, not hidden in the transport.
        options = [*channel.client_options(), ("grpc.use_local_subchannel_pool", 1)]
        if self._source is None:
            return grpc.aio.insecure_channel(address, options=options)
        named = [("grpc.ssl_target_name_override", self._name)] if self._name else []
        credentials = channel_credentials(self._source)
        return grpc.aio.secure_channel(address, credentials, options=[*options, *named])

    def explained(self, detail: str) -> str:
        """Returns why a connection was lost, with what that may mean in terms of options."""
        has_ended = _ENDED in detail and _LATER not in detail
        if self._source is None:
            if has_ended:
                return f"{detail}; if it speaks TLS, this router needs --engine-tls-ca"
            return detail
        if _NO_TLS in detail:
            return f"it does not speak TLS, but --engine-tls-ca is given: {detail}"
        if _WRONG_NAME in detail:
            if self._name:
                return f"its certificate does not have the name {self._name}: {detail}"
            return (
                "its certificate does not have the host of its address; --engine-tls-name says "
                f"which name it must have: {detail}"
            )
        if has_ended:
            return f"{detail}; it may have refused this router's --engine-tls-cert, or its lack"
        return detail
