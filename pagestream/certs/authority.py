"""A certificate authority for development, made by the program openssl."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from servicekit.errors import StartupError

_SECONDS = 30.0
_MAX_SAID = 300
_CONFIG = """\
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = {usage}
subjectAltName = {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA whose files are `ca.pem` and `ca.key` of a folder.

    Attributes:
        folder: Where it is, and where its certificates go.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, days: int) -> "Authority":
        """Makes a CA in an existing folder.

        Raises:
            StartupError: openssl is missing or fails.
        """
        authority = cls(folder)
        config = authority._write_config("serverAuth", "DNS:localhost")
        key = _new_key(folder / "ca.key")
        asked = ["-subj", "/CN=Pagestream development CA", "-days", str(days)]
        made: list[str | Path] = ["-config", config, "-extensions", "ca", "-out", folder / "ca.pem"]
        _openssl("req", "-x509", *asked, *key, *made)
        return authority

    def issue(self, name: str, *, names: Sequence[str], days: int, is_server: bool) -> None:
        """Makes a certificate, `<name>.pem`, and its key, `<name>.key`.

        Args:
            name: Of the files.
            names: What the certificate is for, such as "DNS:localhost"; the first is also its
                common name.
            days: For which it is valid.
            is_server: Whether it is a server's; else it is a client's.

        Raises:
            StartupError: openssl is missing or fails.
        """
        usage = "serverAuth" if is_server else "clientAuth"
        config = self._write_config(usage, ", ".join(names))
        folder, request = self.folder, self.folder / f"{name}.csr"
        key = _new_key(folder / f"{name}.key")
        subject = f"/CN={names[0].partition(':')[2]}"
        _openssl("req", "-new", "-config", config, "-subj", subject, *key, "-out", request)
        ca: list[str | Path] = ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key"]
        asked = ["-set_serial", f"0x{secrets.token_hex(16)}", "-days", str(days)]
        made: list[str | Path] = [
            "-extfile",
            config,
            "-extensions",
            "leaf",
            "-out",
            folder / f"{name}.pem",
        ]
        _openssl("x509", "-req", "-in", request, *ca, *asked, *made)
        request.unlink()

    def _write_config(self, usage: str, names: str) -> Path:
        path = self.folder / "openssl.cnf"
        path.write_text(_CONFIG.format(usage=usage, names=names), encoding="ascii")
        return path


def _new_key(path: Path) -> tuple[str | Path, ...]:
    # It would be written with the rights that the process gives to new files.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path


def _openssl(*arguments: str | Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise StartupError(
            "the program openssl is missing; install it, such as the package openssl"
        )
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split())[-_MAX_SAID:]
        raise StartupError(f"openssl {arguments[0]} failed: {said}")
