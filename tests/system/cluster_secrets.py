"""The Secrets of a small cluster, which cert-manager and an operator would make."""

import contextlib
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagestream.certs.authority import Authority
from pagestream.keys.command import main as keys
from tests.contract.manifests import Deployed, secrets_of

DAYS = 2
_KEY = "small"
Files = dict[str, Path]
"""The files of a Secret by their keys."""


@dataclass(frozen=True)
class Secrets:
    """All of them by name, and the API key that the file of `api-keys` was made with."""

    files: dict[str, Files]
    api_key: str

    def read(self, secret: str, key: str) -> bytes:
        return self.files[secret][key].read_bytes()


def make(deployed: Deployed, folder: Path) -> Secrets:
    """Makes what the overlay asks cert-manager for, and a file with one API key."""
    files: dict[str, Files] = {}
    certificates = [
        d["spec"] for (kind, _), d in deployed.documents.items() if kind == "Certificate"
    ]
    for spec in sorted(certificates, key=lambda spec: not spec.get("isCA")):
        files[spec["secretName"]] = _issue(deployed, spec, folder)
    keys_file, said = folder / "keys.yaml", io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        assert keys(["create", _KEY, "--file", str(keys_file)]) == 0
    return Secrets({**files, "api-keys": {"keys.yaml": keys_file}}, said.getvalue().strip())


def _issue(deployed: Deployed, spec: dict[str, Any], folder: Path) -> Files:
    if spec.get("isCA"):
        place = folder / spec["secretName"]
        place.mkdir()
        Authority.create(place, DAYS)
        return {
            "tls.crt": place / "ca.pem",
            "tls.key": place / "ca.key",
            "ca.crt": place / "ca.pem",
        }
    issuer = deployed.documents["Issuer", spec["issuerRef"]["name"]]["spec"]
    place, name = folder / issuer["ca"]["secretName"], spec["secretName"]
    names = [f"DNS:{name}" for name in spec["dnsNames"]]
    Authority(place).issue(name, names=names, days=DAYS, is_server="server auth" in spec["usages"])
    return {
        "tls.crt": place / f"{name}.pem",
        "tls.key": place / f"{name}.key",
        "ca.crt": place / "ca.pem",
    }


def revoke(secrets: Secrets) -> None:
    """Takes the API key out of its file."""
    assert keys(["revoke", _KEY, "--file", str(secrets.files["api-keys"]["keys.yaml"])]) == 0


def mount(secrets: Secrets, pod: dict[str, Any]) -> None:
    """Puts the files of a pod's Secrets where the pod has them, or newer ones in their place.

    As kubelet does: each is a link into a folder that is itself a link, which is replaced.
    """
    for path, secret in secrets_of(pod).items():
        files = secrets.files.get(secret["secretName"])
        if files is None:
            assert secret.get("optional"), f"nobody makes {secret['secretName']}"
            continue
        items = secret.get("items", [{"key": key, "path": key} for key in files])
        Path(path).mkdir(parents=True, exist_ok=True)
        data, new = Path(tempfile.mkdtemp(dir=path, prefix="..")), Path(path, "..new")
        for item in items:
            shutil.copy(files[item["key"]], data / item["path"])
            link = Path(path, item["path"])
            if not link.is_symlink():
                link.symlink_to(Path("..data", item["path"]))
        new.symlink_to(data.name)
        new.replace(Path(path, "..data"))
