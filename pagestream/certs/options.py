"""The options of `pagestream certs`."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from servicekit.options import OptionReader, Options, about
from servicekit.values import Integers, Listed, Paths, Texts, quoted

_NAME = r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"


class _ServerNames(Listed):
    """Names and IP addresses."""

    def parse(self, text: str) -> object:
        return tuple(name.strip() for name in text.split(","))

    def check(self, value: object) -> None:
        if not isinstance(value, tuple) or not value:
            raise ValueError(f"is {quoted(value)}, must be a tuple of names")
        for name in value:
            if not isinstance(name, str) or not (_is_address(name) or _is_name(name)):
                raise ValueError(f"has {quoted(name)}, which is no DNS name and no IP address")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertsOptions(Options):
    """What is made, and where."""

    dir: Path = field(
        metadata=about(
            Paths(), "folder that gets the files; it may exist, they may not", is_positional=True
        )
    )
    names: tuple[str, ...] = field(
        default=("localhost", "127.0.0.1", "::1"),
        metadata=about(
            _ServerNames(),
            "DNS names and IP addresses of the servers, separated by commas",
            unset="localhost,127.0.0.1,::1",
        ),
    )
    client_name: str = field(
        default="pagestream-router",
        metadata=about(Texts(_NAME, "a DNS name"), "DNS name in the client's certificate"),
    )
    days: int = field(
        default=90,
        metadata=about(Integers(1, 3650), "days for which all certificates are valid"),
    )


def subject_names(names: tuple[str, ...]) -> list[str]:
    """Returns names as a certificate has them, such as "DNS:localhost"."""
    return [f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_name(text: str) -> bool:
    return len(text) <= 253 and bool(re.fullmatch(_NAME, text))


READER = OptionReader(
    program="pagestream certs",
    description="Makes a CA for development, with a certificate for servers and one for clients. "
    "Not for production: the CA's key lies beside them.",
    prefix="PAGESTREAM_CERTS_",
    groups={"certs": CertsOptions},
)
