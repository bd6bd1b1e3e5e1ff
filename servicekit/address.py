"""Addresses in text form: "host:port", with an IPv6 address in brackets."""

import ipaddress
import re

MAX_PORT = 65_535

# The ASCII characters of a name, which may also have other letters; "%" begins an IPv6 zone.
_NAME = re.compile(r"(?:[A-Za-z0-9._-]|[^\x00-\x7f]){1,253}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def join(host: str, port: int) -> str:
    """Returns "host:port", with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Returns host and port of an address; the host without brackets.

    Raises:
        ValueError: It is not an address; the text is a clause about it.
    """
    host, separator, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if is_bracketed:
        host = host[1:-1]
    is_like_address = separator and "/" not in port and is_bracketed == (":" in host)
    if not is_like_address or not is_host(host):
        raise ValueError('which is not "host:port"')
    if not _PORT.fullmatch(port) or int(port) > MAX_PORT:
        raise ValueError(f"whose port is not from 1 to {MAX_PORT}")
    return host, int(port)


def is_host(text: str) -> bool:
    """Whether a text is a name or an IP address, without brackets; does not resolve it."""
    if not text.isprintable():
        return False
    if ":" not in text:
        return bool(_NAME.fullmatch(text))
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    # A zone is the name of a network interface and may contain any characters.
    return bool(_NAME.fullmatch(text.partition("%")[2] or "none"))
