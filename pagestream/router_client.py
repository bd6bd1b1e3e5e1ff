"""How a command reaches a router by gRPC, and what it says when a call fails."""

from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from protos.wire.channel import client_options
from protos.wire.printable import shown
from protos.wire.status import ErrorStatus, code_number, unpack
from servicekit.address import split
from servicekit.errors import StartupError

DEFAULT_ROUTER = "127.0.0.1:50050"
"""Where `pagestream router` listens unless told otherwise."""
CALL_SECONDS = 10.0
"""Time limit of a call that is answered from memory."""
_SCHEMES = ("grpc://", "grpcs://")
"""In plain text unless there are certificates, and through TLS."""
_MAX_TEXT = 500
_CAUSE = "last error: UNKNOWN: "
_NO_HTTP2 = ("http1.x server", "missing selected ALPN property")
"""What gRPC says of a port that speaks HTTP/1, in plain text and through TLS."""


def router_address(text: str) -> str:
    """Returns the host:port of a router's gRPC port, given as that or as a URL.

    URLs are grpc://host:port, or grpcs://host:port for TLS.

    Raises:
        StartupError: It is neither.
    """
    if text.startswith(("http://", "https://")):
        raise StartupError(
            f"{shown(text)} is a URL of HTTP; this command speaks gRPC: give the router's gRPC "
            f"port, such as {DEFAULT_ROUTER}"
        )
    found = text.partition("://")[2] if text.startswith(_SCHEMES) else text
    found = found.removesuffix("/")
    try:
        split(found)
    except ValueError as error:
        raise StartupError(
            f"the router is {shown(text)!r}, {error}; give one such as {DEFAULT_ROUTER}"
        ) from None
    return found


def is_secure(url: str) -> bool:
    """Whether a URL asks for TLS, by its scheme."""
    return url.startswith(("grpcs://", "https://"))


def channel_options() -> list[tuple[str, int]]:
    """Returns the options of a channel that shares its connection with no other one."""
    return [*client_options(), ("grpc.use_local_subchannel_pool", 1)]


def status_of(error: grpc.RpcError) -> ErrorStatus:
    """Returns the status of a failed call, with what its details say. Never raises."""
    try:
        rich = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        # The details are missing or do not match the status.
        rich = None
    if rich is not None:
        return unpack(rich.code, rich.message, rich.details)
    return unpack(code_number(error.code()), error.details() or "no detail", ())


def reason_of(error: grpc.RpcError) -> str:
    """Returns the name of what went wrong, such as "QUEUE_FULL" or "UNAVAILABLE"."""
    name: str = error.code().name
    return status_of(error).reason or name


def describe(address: str, error: grpc.RpcError, advise: Callable[[str], str]) -> str:
    """Returns what went wrong with a call to a router, as one line.

    Args:
        address: The router's.
        error: The error.
        advise: Returns what may help, given what went wrong.
    """
    reason = reason_of(error)
    message = status_of(error).message
    if any(sign in message for sign in _NO_HTTP2):
        return (
            f"what answers at {address} does not speak gRPC: give the router's gRPC port, such as "
            f"{DEFAULT_ROUTER}"
        )
    text = shown(message, _MAX_TEXT)
    # Others tell what the router has met, such as an engine that is lost.
    if reason in (grpc.StatusCode.UNAVAILABLE.name, grpc.StatusCode.UNAUTHENTICATED.name):
        text += advise(f"{reason}: {message}")
    if reason == grpc.StatusCode.UNAVAILABLE.name:
        # gRPC puts what happened behind what it concludes.
        return f"no router answers at {address}: {text.rpartition(_CAUSE)[2]}"
    if reason == grpc.StatusCode.UNIMPLEMENTED.name:
        return f"what answers at {address} is no router: {text}"
    return f"{address}: {reason}: {text}"
