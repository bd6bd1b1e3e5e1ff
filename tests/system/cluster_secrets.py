"""The Secrets of a small cluster, which cert-manager and an operator would make."""

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagestream.certs.authority import Authority
from pagestream.keys.command import main as keys
from tests.contract.manifests import Deployed, secrets_of

DAYS = 2
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
        assert keys(["create", "small", "--file", str(keys_file)]) == 0
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


def mount(secrets: Secrets, pod: dict[str, Any]) -> None:
    """Puts the files of a pod's Secrets where the pod has them, links as kubelet makes them."""
    for path, secret in secrets_of(pod).items():
        files = secrets.files.get(secret["secretName"])
        if files is None:
            assert secret.get("optional"), f"nobody makes {secret['secretName']}"
            continue
        items = secret.get("items", [{"key": key, "path": key} for key in files])
        data = Path(path, "..2026_01_01")
        data.mkdir(parents=True, exist_ok=True)
        for item in items:
            shutil.copy(files[item["key"]], data / item["path"])
            Path(path, item["path"]).symlink_to(Path("..data", item["path"]))
        Path(path, "..data").symlink_to(data.name)
