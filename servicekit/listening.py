"""The addresses that a service listens on: one rule for all its ports.

    ::         all addresses of the machine, of both families where it has both
    0.0.0.0    all its IPv4 addresses
    a name     each of its addresses that this machine has
    otherwise  that address

The port number is the same on all addresses, even if it was picked as a free one.
"""

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator

from servicekit import address
from servicekit.errors import StartupError

_ATTEMPTS = 16
"""How many free ports are tried: one that is free on one address may be in use on another."""
_BACKLOG = 1024
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class CannotListen(StartupError):
    """Listening on a port failed; the text says why, and which option to change."""


def listen(host: str, port: int, option: str) -> list[socket.socket]:
    """Returns sockets that listen at one port; the caller closes them.

    Args:
        host: Name or address of this machine.
        port: The port, or 0 for a free one.
        option: The option that sets the port, such as "operations-port".

    Raises:
        CannotListen: The port is in use, or the host is not this machine's.
    """
    try:
        return _listen(_numeric(host), port)
    except OSError as error:
        raise _cannot_listen(host, port, option, _words(error)) from None


def add_grpc_port(add_insecure_port: Callable[[str], int], host: str, port: int) -> int:
    """Makes a gRPC server listen and returns the port, which is a free one if `port` is 0.

    Args:
        add_insecure_port: The server's method.
        host: Name or address of this machine.
        port: The port.

    Raises:
        CannotListen: The port is in use, or the host is not this machine's.
    """
    # For a port in use, gRPC would log its own lines without the reason.
    hosts = {}
    probes = listen(host, port, "port")
    chosen: int = probes[0].getsockname()[1]
    for probe in probes:
        hosts[_host_of(probe)] = chosen
        probe.close()
    try:
        # A single address is better left to gRPC: no other process can take the port in between.
        if port == 0 and len(hosts) == 1 and "0.0.0.0" not in hosts:
            return add_insecure_port(address.join(next(iter(hosts)), 0))
        for numeric in hosts:
            with _ipv4_alone(numeric, chosen):
                add_insecure_port(address.join(numeric, chosen))
    except RuntimeError as error:
        raise _cannot_listen(host, port, "port", str(error)) from None
    return chosen


def _numeric(host: str) -> list[str]:
    """Returns the addresses of a host, each once.

    Raises:
        OSError: A name does not resolve.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    numeric = []
    for family, *_, where in found:
        text = socket.getnameinfo(where, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
        if family == socket.AF_INET6:
            mapped = ipaddress.IPv6Address(text).ipv4_mapped
            text = str(mapped) if mapped else text
        if text == "::" and not socket.has_dualstack_ipv6():
            text = "0.0.0.0"
        if text not in numeric:
            numeric.append(text)
    return numeric


def _listen(hosts: list[str], port: int) -> list[socket.socket]:
    num_attempts = _ATTEMPTS if port == 0 and len(hosts) > 1 else 1
    while True:
        num_attempts -= 1
        try:
            return _listen_once(hosts, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not num_attempts:
                raise


def _listen_once(hosts: list[str], port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as opened:
        for host in hosts:
            number = listeners[0].getsockname()[1] if listeners else port
            try:
                listeners.append(opened.enter_context(_listener(host, number)))
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                missing = error
        if missing is not None and not listeners:
            raise missing
        opened.pop_all()
    return listeners


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][-1]
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind(where)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _host_of(listener: socket.socket) -> str:
    return socket.getnameinfo(
        listener.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    )[0]


@contextlib.contextmanager
def _ipv4_alone(host: str, port: int) -> Iterator[None]:
    """Keeps gRPC from treating 0.0.0.0 as all addresses of both families, its default."""
    with contextlib.ExitStack() as held:
        if host == "0.0.0.0" and socket.has_ipv6:
            # In use already, or no IPv6: gRPC then cannot bind it either.
            with contextlib.suppress(OSError):
                holder = held.enter_context(socket.socket(socket.AF_INET6))
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                holder.bind(("::", port))
        yield


def _cannot_listen(host: str, port: int, option: str, why: str) -> CannotListen:
    return CannotListen(
        f"cannot listen on {address.join(host, port)} ({why}); choose another --{option} or --host"
    )


def _words(error: OSError) -> str:
    # A name that cannot be resolved has a negative number.
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error.strerror)
