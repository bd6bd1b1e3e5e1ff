"""The manifests as kustomize builds them, and what the services read from them."""

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from engine_service.config import EngineConfig
from engine_service.config import read_config as read_engine_config
from router.config import read_config as read_router_config

K8S = Path(__file__).parents[2] / "k8s"
BASE = "base"
TENSOR_PARALLEL = "overlays/tensor-parallel"
FLEET = "overlays/fleet"
LAPTOP = "overlays/laptop"
ONE_GPU = "overlays/one-gpu"
TWO_MODELS = "overlays/two-models"
MTLS = "overlays/mtls"
LLM_D = "overlays/llm-d"
FOLDERS = (LAPTOP, ONE_GPU, TENSOR_PARALLEL, FLEET, TWO_MODELS, MTLS, LLM_D)
"""What is applied to a cluster."""
TLS = "components/tls"
OWN_CERTIFICATES = "components/own-certificates"
PARTS = (
    BASE,
    *(TLS, f"{TLS}/clients", f"{TLS}/engines"),
    *("components/plaintext", "components/plaintext/clients", "components/plaintext/engines"),
    *("components/api-keys", "components/monitoring", OWN_CERTIFICATES),
    *(f"{TWO_MODELS}/small", f"{TWO_MODELS}/large"),
)
"""What is only built as a part of these."""
Documents = dict[tuple[str, str], dict[str, Any]]


@functools.cache
def build(folder: str) -> Documents:
    """Returns the objects that a kustomization of ours makes, by kind and name."""
    return build_at(K8S / folder)


def build_at(folder: Path) -> Documents:
    """Returns the objects that any kustomization makes, by kind and name."""
    if shutil.which("kubectl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("kubectl is missing")
        pytest.skip("kubectl is missing: the manifests cannot be built")
    result = subprocess.run(
        ["kubectl", "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = list(yaml.load_all(result.stdout, yaml.CSafeLoader))
    documents = {(document["kind"], document["metadata"]["name"]): document for document in loaded}
    assert len(documents) == len(loaded), "two objects have one kind and one name"
    return documents


def build_with(folder: Path, base: str, component: str) -> Documents:
    """Writes a kustomization in a folder, of one of ours and a component, and builds it."""
    resource, part = (os.path.relpath(K8S / path, folder) for path in (base, component))
    text = yaml.safe_dump({"resources": [resource], "components": [part]})
    (folder / "kustomization.yaml").write_text(text)
    return build_at(folder)


class Deployed(NamedTuple):
    """The routers and engines of one model."""

    folder: str
    prefix: str = ""

    @property
    def documents(self) -> Documents:
        """All objects of the kustomization, those of other models included."""
        return build(self.folder)

    def find(self, kind: str, name: str) -> dict[str, Any]:
        """Returns an object by the name that it has in the base."""
        return self.documents[kind, self.prefix + name]

    def pod(self, name: str) -> dict[str, Any]:
        """Returns the pod template of the router or the engine."""
        kind = {"router": "Deployment", "engine": "StatefulSet"}[name]
        template: dict[str, Any] = self.find(kind, name)["spec"]["template"]
        return template

    def settings(self, name: str) -> Any:
        """Returns what the service itself reads from its container's arguments."""
        arguments = arguments_of(self.pod(name))
        if name == "router":
            return read_router_config(arguments, {})
        return self.engine_config().server

    def engine_config(self) -> EngineConfig:
        return read_engine_config(arguments_of(self.pod("engine")), {})


DEPLOYED = [Deployed(folder) for folder in FOLDERS if folder != TWO_MODELS] + [
    Deployed(TWO_MODELS, "small-"),
    Deployed(TWO_MODELS, "large-"),
]


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


def arguments_of(pod: dict[str, Any]) -> list[str]:
    """Returns a container's arguments, with its variables filled in as by Kubernetes."""
    container = container_of(pod)
    arguments = list(container["args"])
    for variable in container.get("env", ()):
        reference = f"$({variable['name']})"
        arguments = [text.replace(reference, variable["value"]) for text in arguments]
    assert not any("$(" in text for text in arguments)
    return arguments


def secrets_of(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the volumes of a pod that are Secrets, by the folder that has their files."""
    secrets = {v["name"]: v["secret"] for v in pod["spec"]["volumes"] if "secret" in v}
    mounts = container_of(pod)["volumeMounts"]
    return {m["mountPath"]: secrets[m["name"]] for m in mounts if m["name"] in secrets}


def ports_of(pod: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(pod)["ports"]}


def gibibytes(text: str) -> int:
    return int(text.removesuffix("Gi"))


def dockerfile_of(name: str) -> str:
    text = (K8S / "images" / f"{name}.Dockerfile").read_text()
    return text.replace("\\\n", " ")
