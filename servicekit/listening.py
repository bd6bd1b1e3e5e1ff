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
import time
from collections.abc import Callable, Iterator

from servicekit import address
from servicekit.errors import StartupError
from servicekit.process import max_port_connections

_ATTEMPTS = 16
"""How many free ports are tried: one that is free on one address may be in use on another."""
_BACKLOG = 1024
_TURN_SECONDS = 2.0
_POLL_SECONDS = 0.005
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class CannotListen(StartupError):
    """Listening on a port failed; the text says why, and which option to change."""


@contextlib.contextmanager
def reserved_port(host: str, port: int, option: str) -> Iterator[int]:
    """Keeps a port for servers that share it; yields it, a free one if `port` is 0.

    They are of this process or its children, and the system spreads connections over them. While
    the block runs, no other process can use the port, unless it has the same user and asks for a
    shared port itself.

    Args:
        host: Name or address of this machine.
        port: The port, or 0 for a free one.
        option: The option that sets the port, such as "http-port".

    Raises:
        CannotListen: The port is in use, shared or not, or the host is not this machine's.
    """
    with contextlib.ExitStack() as held:
        # Alone at first, so that nothing is shared with another service.
        listeners = listen(host, port, option)
        chosen: int = listeners[0].getsockname()[1]
        for listener in listeners:
            with listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                # It never listens, so it gets no connections.
                holder = held.enter_context(_shared(_host_of(listener), chosen))
            # Otherwise a second service could bind the port, too, until a child listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield chosen


def listen(host: str, port: int, option: str, *, is_shared: bool = False) -> list[socket.socket]:
    """Returns sockets that listen at one port; the caller closes them.

    Args:
        host: Name or address of this machine.
        port: The port, or 0 for a free one.
        option: The option that sets the port, such as "operations-port".
        is_shared: Whether it is a `reserved_port`.

    Raises:
        CannotListen: The port is in use, or the host is not this machine's.
    """
    try:
        return _open(host, port, _shared_listener if is_shared else _listener)
    except OSError as error:
        raise _cannot_listen(host, port, option, _words(error)) from None


def max_grpc_connections(host: str) -> int:
    """Returns how many connections all gRPC servers of a port may hold at each address of a host.

    gRPC counts those of each address on their own; together they are `max_port_connections`.

    Args:
        host: Name or address of this machine.
    """
    try:
        num_addresses = len(_numeric(host))
    except OSError:
        # Listening will say why.
        num_addresses = 1
    return max(1, max_port_connections() // num_addresses)


def add_grpc_port(
    add_port: Callable[[str], int], host: str, port: int, *, is_shared: bool = False
) -> int:
    """Makes a gRPC server listen and returns the port, which is a free one if `port` is 0.

    Args:
        add_port: The server's function, with or without TLS.
        host: Name or address of this machine.
        port: The port.
        is_shared: Whether it is a `reserved_port`; the server's options must say so, too.

    Raises:
        CannotListen: The port is in use, or the host is not this machine's.
    """
    # For a port in use, gRPC would log its own lines without the reason.
    try:
        hosts = _numeric(host)
        chosen = port
        # That of a single address is known to be ours, and a probe outside the turn of
        # `_ipv4_alone` would let other servers listen on IPv6, too.
        if not is_shared or len(hosts) > 1:
            # A probe of a shared port does not listen: it would get connections.
            probes = _open(host, port, _shared if is_shared else _listener)
            chosen = probes[0].getsockname()[1]
            hosts = [_host_of(probe) for probe in probes]
            for probe in probes:
                probe.close()
    except OSError as error:
        raise _cannot_listen(host, port, "port", _words(error)) from None
    try:
        # A single address is better left to gRPC: no other process can take the port in between.
        if port == 0 and len(hosts) == 1 and "0.0.0.0" not in hosts:
            return add_port(address.join(hosts[0], 0))
        for numeric in hosts:
            with _ipv4_alone(numeric, chosen, is_shared=is_shared):
                add_port(address.join(numeric, chosen))
    except RuntimeError as error:
        raise _cannot_listen(host, port, "port", str(error)) from None
    except OSError as error:
        raise _cannot_listen(host, port, "port", _words(error)) from None
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


def _open(host: str, port: int, make: Callable[[str, int], socket.socket]) -> list[socket.socket]:
    hosts = _numeric(host)
    num_attempts = _ATTEMPTS if port == 0 and len(hosts) > 1 else 1
    while True:
        num_attempts -= 1
        try:
            return _open_once(hosts, port, make)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not num_attempts:
                raise


def _open_once(
    hosts: list[str], port: int, make: Callable[[str, int], socket.socket]
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as opened:
        for host in hosts:
            number = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(opened.enter_context(make(host, number)))
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                missing = error
        if missing is not None and not sockets:
            raise missing
        opened.pop_all()
    return sockets


def _listener(host: str, port: int) -> socket.socket:
    return _bound(host, port, is_shared=False, is_listening=True)


def _shared_listener(host: str, port: int) -> socket.socket:
    return _bound(host, port, is_shared=True, is_listening=True)


def _shared(host: str, port: int) -> socket.socket:
    return _bound(host, port, is_shared=True, is_listening=False)


def _bound(host: str, port: int, *, is_shared: bool, is_listening: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][-1]
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        bound.bind(where)
        if is_listening:
            bound.listen(_BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def _host_of(listener: socket.socket) -> str:
    return socket.getnameinfo(
        listener.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    )[0]


@contextlib.contextmanager
def _ipv4_alone(host: str, port: int, *, is_shared: bool) -> Iterator[None]:
    """Keeps gRPC from treating 0.0.0.0 as all addresses of both families, its default."""
    with contextlib.ExitStack() as held:
        if host == "0.0.0.0" and socket.has_ipv6:
            try:
                holder = held.enter_context(socket.socket(socket.AF_INET6))
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                _bind_in_turn(holder, port, _TURN_SECONDS if is_shared else 0.0)
            except OSError as error:
                # In use already, or no IPv6: gRPC then cannot bind it either. But a shared port
                # that is in use can be bound once more.
                if is_shared and error.errno == errno.EADDRINUSE:
                    raise
        yield


def _bind_in_turn(holder: socket.socket, port: int, seconds: float) -> None:
    """Binds all IPv6 addresses, after the processes that share the port and do the same."""
    # Each does it anew: Linux lets a socket join those that share a port without a look at the
    # others, unless the last one that was bound does not share.
    deadline = time.monotonic() + seconds
    while True:
        try:
            holder.bind(("::", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _cannot_listen(host: str, port: int, option: str, why: str) -> CannotListen:
    return CannotListen(
        f"cannot listen on {address.join(host, port)} ({why}); choose another --{option} or host"
    )


def _words(error: OSError) -> str:
    # A name that cannot be resolved has a negative number.
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error.strerror)
