"""`pagestream certs DIR`: makes certificates for development."""

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pagestream.certs.authority import Authority
from pagestream.certs.options import READER, CertsOptions, subject_names
from servicekit.errors import StartupError
from servicekit.log import print_error

FILES = ("ca.pem", "ca.key", "server.pem", "server.key", "client.pem", "client.key")
_USE = """\
made in {folder}: {files}

engine  --tls-cert {server}.pem --tls-key {server}.key
        --tls-client-ca {ca} --tls-client-names {name}
router  --engine-tls-ca {ca} --engine-tls-cert {client}.pem --engine-tls-key {client}.key
        --engine-tls-name {server_name} --tls-cert {server}.pem --tls-key {server}.key
curl    --cacert {ca}

For development only: who has ca.key can be anybody. The certificates end in {days} days.
"""


def main(arguments: Sequence[str]) -> int:
    """Makes the files and says how to use them; returns the exit code."""
    try:
        options = READER.read(arguments).build(CertsOptions)
        make_files(options)
    except StartupError as error:
        print_error("pagestream certs", error)
        return 2
    print(_use(options), end="")
    return 0


def make_files(options: CertsOptions) -> None:
    """Makes `FILES`: keys for their owner only, and none in the place of another.

    Raises:
        StartupError: A file exists, the folder cannot be written, or openssl is missing or fails.
    """
    folder = options.dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_none(folder)
        # Also for its owner only.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
            authority = Authority.create(Path(making), options.days)
            names = subject_names(options.names)
            authority.issue("server", names=names, days=options.days, is_server=True)
            names = subject_names((options.client_name,))
            authority.issue("client", names=names, days=options.days, is_server=False)
            for name in FILES:
                # Unlike a rename, it fails where there is a file meanwhile.
                os.link(Path(making, name), folder / name)
    except FileExistsError as error:
        raise StartupError(_exists(Path(error.filename2 or error.filename))) from None
    except OSError as error:
        raise StartupError(f"{folder} cannot be used: {error.strerror}") from None


def _check_none(folder: Path) -> None:
    for name in FILES:
        # A link that leads nowhere counts, too.
        if os.path.lexists(folder / name):
            raise StartupError(_exists(folder / name))


def _exists(path: Path) -> str:
    return f"{path} exists and is not overwritten; remove it or name another folder"


def _use(options: CertsOptions) -> str:
    def at(name: str) -> str:
        return shlex.quote(str(options.dir / name))

    return _USE.format(
        folder=options.dir,
        files=", ".join(FILES),
        ca=at("ca.pem"),
        server=at("server"),
        client=at("client"),
        name=options.client_name,
        server_name=options.names[0],
        days=options.days,
    )
