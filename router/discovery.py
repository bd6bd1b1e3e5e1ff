"""Where the engines are: a static list of addresses, checked once.

The fleet takes its addresses from here. A source that changes while the router runs (DNS of a
headless Service, a file) will stand beside `parse_addresses` and feed the same fleet.
"""

from collections.abc import Iterable

from router.errors import StartupError

_MAX_PORT = 65_535


def parse_addresses(values: Iterable[str]) -> tuple[str, ...]:
    """Returns the addresses of "host:port" texts, in their order.

    Args:
        values: Texts of one address each, or several separated by commas. An IPv6 address stands
            in brackets: "[::1]:9000".

    Raises:
        StartupError: An address is malformed or stands twice, or there is none.
    """
    addresses: list[str] = []
    for value in values:
        for part in value.split(","):
            address = part.strip()
            _check(address)
            if address in addresses:
                raise StartupError(f'engine "{address}" is listed twice')
            addresses.append(address)
    if not addresses:
        raise StartupError('no engine is listed; give at least one "host:port"')
    return tuple(addresses)


def _check(address: str) -> None:
    host, separator, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or (":" in host and not is_bracketed) or "/" in address:
        raise StartupError(f'engine "{address}" is not "host:port"')
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= _MAX_PORT):
        raise StartupError(f'engine "{address}": port "{port}" is not from 1 to {_MAX_PORT}')
