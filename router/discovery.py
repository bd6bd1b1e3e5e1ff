"""Where the engines are: a static list of addresses, checked once, with the other settings.

A source that changes while the router runs (DNS of a headless Service, a file) will stand beside
`parse_addresses` and feed the same fleet.
"""

_MAX_PORT = 65_535


def parse_addresses(text: str) -> tuple[str, ...]:
    """Returns the "host:port" addresses of a text, which commas separate, in their order.

    An IPv6 address stands in brackets: "[::1]:9000".

    Raises:
        ValueError: An address is malformed or stands twice; ends a sentence on the text.
    """
    addresses: list[str] = []
    for part in text.split(","):
        address = part.strip()
        _check(address)
        if address in addresses:
            raise ValueError(f'lists "{address}" twice')
        addresses.append(address)
    return tuple(addresses)


def _check(address: str) -> None:
    host, separator, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or (":" in host and not is_bracketed) or "/" in address:
        raise ValueError(f'has "{address}", which is not "host:port"')
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= _MAX_PORT):
        raise ValueError(f'has "{address}", whose port is not from 1 to {_MAX_PORT}')
