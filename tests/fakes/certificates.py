"""Certificates for tests: one CA, another that nobody trusts, and what they have issued."""

import os
import shutil
from pathlib import Path

from pagestream.certs.authority import Authority

DAYS = 2
LOCAL = ("DNS:localhost", "IP:127.0.0.1")
CLIENT = "router.test"
CLIENT_URI = "spiffe://test/router"


def make_certificates(folder: Path) -> Path:
    """Makes CAs and certificates in a folder, and returns it.

    ca.pem      has issued server, elsewhere (of another name), client, guest (of another name),
                expired (a server's) and gone (a client's, expired)
    other/      as much of another CA: ca.pem, server, client
    """
    authority = Authority.create(folder, DAYS)
    servers = {"server": LOCAL, "elsewhere": ("DNS:elsewhere.test",)}
    for name, names in servers.items():
        authority.issue(name, names=names, days=DAYS, is_server=True)
    names = (f"DNS:{CLIENT}", f"URI:{CLIENT_URI}")
    authority.issue("client", names=names, days=DAYS, is_server=False)
    authority.issue("guest", names=("DNS:guest.test",), days=DAYS, is_server=False)
    authority.issue("expired", names=LOCAL, days=-1, is_server=True)
    authority.issue("gone", names=names, days=-1, is_server=False)
    (folder / "other").mkdir()
    other = Authority.create(folder / "other", DAYS)
    other.issue("server", names=LOCAL, days=DAYS, is_server=True)
    other.issue("client", names=names, days=DAYS, is_server=False)
    return folder


def replace(path: Path, by: Path) -> None:
    """Replaces a file in one step."""
    temporary = path.with_name(f"{path.name}.new")
    shutil.copy(by, temporary)
    os.replace(temporary, path)
