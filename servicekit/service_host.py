"""The host that a service listens on, which without TLS is this machine alone."""

import ipaddress

from servicekit.errors import StartupError
from servicekit.options import GivenOptions

_LOOPBACK_NAME = "localhost"


def is_loopback(host: str) -> bool:
    """Whether a host is reached from this machine alone; no name but `localhost` counts as such."""
    # Not resolved: what a name stands for may change after it was looked at.
    if host.lower() == _LOOPBACK_NAME:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def service_host(given: GivenOptions, default: str) -> str:
    """Returns the host of a service's ports, by --host, --insecure-host and --tls-cert.

    Args:
        given: The options that were given.
        default: The host where none is given.

    Raises:
        StartupError: The client ports would speak plain text beyond this machine though nobody said
            so, or the options contradict each other; the message says what to do.
    """
    insecure = given.sources.get("insecure_host")
    if insecure is None:
        host: str = given.values.get("host", default)
        if "tls_cert" not in given.values and not is_loopback(host):
            raise StartupError(
                f"{given.sources['host']} is {host!r}, which others can reach, but there is no "
                "certificate; give --tls-cert and --tls-key, or serve there in plain text with "
                f"--insecure-host {host} instead"
            )
        return host
    if "host" in given.values:
        raise StartupError(
            f"{given.sources['host']} and {insecure} are given; give only one of them"
        )
    if "tls_cert" in given.values:
        raise StartupError(
            f"{insecure} is for plain text, but {given.sources['tls_cert']} is given; write --host "
            "instead of --insecure-host, or leave the certificate"
        )
    chosen: str = given.values["insecure_host"]
    return chosen
