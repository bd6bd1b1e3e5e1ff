"""The manifests are valid, agree with each other and with what the services accept."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engine_service.config import EngineConfig
from engine_service.config import read_config as read_engine_config
from protos.pagestream.engine.v1 import engine_pb2
from protos.pagestream.router.v1 import router_pb2
from router.config import read_config as read_router_config
from router.engines.discovery import ServiceName

K8S = Path(__file__).parents[2] / "k8s"
OLDEST_KUBERNETES = "1.30"  # the first whose preStop hooks know `sleep`
GRPC_SERVICES = {
    "router": router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name,
    "engine": engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name,
}
SERVICES = pytest.mark.parametrize("name", ["router", "engine"])
BASE = "base"
TENSOR_PARALLEL = "overlays/tensor-parallel"
Documents = dict[tuple[str, str], dict[str, Any]]


@functools.cache
def build(folder: str) -> Documents:
    """Returns the objects that a kustomization makes, by kind and name."""
    if shutil.which("kubectl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("kubectl is missing")
        pytest.skip("kubectl is missing: the manifests cannot be built")
    result = subprocess.run(
        ["kubectl", "kustomize", str(K8S / folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = list(yaml.safe_load_all(result.stdout))
    return {(document["kind"], document["metadata"]["name"]): document for document in loaded}


@pytest.fixture(params=[BASE, TENSOR_PARALLEL])
def documents(request) -> Documents:
    """The objects of the base, and of each overlay."""
    return build(request.param)


@pytest.fixture
def pods(documents) -> dict[str, dict[str, Any]]:
    """The pod templates of the two services."""
    return {
        "router": documents["Deployment", "router"]["spec"]["template"],
        "engine": documents["StatefulSet", "engine"]["spec"]["template"],
    }


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


def ports_of(pod: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(pod)["ports"]}


def settings_of(name: str, pod: dict[str, Any]) -> Any:
    """Returns what the service itself reads from its container's arguments."""
    if name == "router":
        return read_router_config(container_of(pod)["args"], {})
    return engine_config_of(pod).server


def engine_config_of(pod: dict[str, Any]) -> EngineConfig:
    return read_engine_config(container_of(pod)["args"], {})


def quantity(text: str) -> int:
    """Returns a number of CPUs, or of GiB."""
    return int(text.removesuffix("Gi"))


def dockerfile_of(name: str) -> str:
    text = (K8S / "images" / f"{name}.Dockerfile").read_text()
    return text.replace("\\\n", " ")


def test_every_kustomization_is_tested():
    folders = {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")}
    assert folders == {BASE, TENSOR_PARALLEL}


def test_it_holds_the_objects_of_two_services_and_their_monitor(documents):
    assert set(documents) == {
        ("Deployment", "router"),
        ("Service", "router"),
        ("Service", "router-headless"),
        ("StatefulSet", "engine"),
        ("Service", "engine"),
        ("PodMonitor", "pagestream"),
    }


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
def test_every_object_fits_the_schema_of_kubernetes(documents, version):
    for (kind, _), document in documents.items():
        # A custom resource, of which Kubernetes has no schema; checked by hand below.
        if kind != "PodMonitor":
            kubernetes_validate.validate(document, version, strict=True)


def test_validation_refuses_a_misspelt_field(documents):
    document = {**documents["Service", "router"], "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, OLDEST_KUBERNETES, strict=True)


@SERVICES
def test_arguments_are_accepted_by_the_service_and_name_the_declared_ports(pods, name):
    settings = settings_of(name, pods[name])
    ports = {"grpc": settings.port, "operations": settings.operations_port}
    if name == "router":
        ports["http"] = settings.http_port
    assert ports_of(pods[name]) == ports
    assert settings.host == "0.0.0.0"


@SERVICES
def test_probes_ask_ports_and_services_that_exist(pods, name):
    container, ports = container_of(pods[name]), ports_of(pods[name])
    readiness, liveness = container["readinessProbe"], container["livenessProbe"]
    assert readiness["grpc"] == {"port": ports["grpc"], "service": GRPC_SERVICES[name]}
    assert liveness["httpGet"] == {"port": "operations", "path": "/livez"}


def test_engine_has_half_an_hour_to_load_before_anything_restarts_it(pods):
    probe = container_of(pods["engine"])["startupProbe"]
    assert probe["httpGet"] == {"port": "operations", "path": "/readyz"}
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


@SERVICES
def test_pod_lives_longer_than_its_drain(pods, name):
    container = container_of(pods[name])
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = settings_of(name, pods[name]).drain_grace_seconds
    assert pods[name]["spec"]["terminationGracePeriodSeconds"] >= pause + drain + 10


@SERVICES
def test_service_selects_its_pods_and_leads_to_the_ports_of_their_clients(documents, pods, name):
    spec = documents["Service", name]["spec"]
    assert spec["selector"].items() <= pods[name]["metadata"]["labels"].items()
    ports = ports_of(pods[name])
    del ports["operations"]
    assert {port["targetPort"]: port["port"] for port in spec["ports"]} == ports


def test_clients_that_spread_their_calls_find_each_ready_router(documents, pods):
    spec = documents["Service", "router-headless"]["spec"]
    assert spec["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in spec
    assert spec["selector"].items() <= pods["router"]["metadata"]["labels"].items()
    [port] = spec["ports"]
    assert {port["targetPort"]: port["port"]} == {"grpc": ports_of(pods["router"])["grpc"]}
    # Those that do not are asked to connect again from time to time.
    assert settings_of("router", pods["router"]).max_connection_age_seconds > 0


def test_router_has_memory_for_the_requests_that_it_takes(pods):
    limit = container_of(pods["router"])["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    # docs/operations.md: 18 times the bytes of text, 80 MB for each text that is being tokenized;
    # the rest is a router at rest and its index.
    settings = settings_of("router", pods["router"])
    worst = 18 * settings.max_request_bytes + 80_000_000 * settings.tokenizer_threads
    assert worst + (700 << 20) <= int(limit.removesuffix("Gi")) << 30


def test_router_follows_the_engines_by_the_name_of_their_headless_service(documents, pods):
    name = documents["StatefulSet", "engine"]["spec"]["serviceName"]
    spec = documents["Service", name]["spec"]
    # Its name is then that of the pods, which no port is mapped before, ready or not.
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    settings = settings_of("router", pods["router"])
    assert settings.engine_dns == ServiceName(host=name, port=ports_of(pods["engine"])["grpc"])
    assert settings.engines == ()


def test_pod_monitor_scrapes_the_operations_port_of_both(documents, pods):
    monitor = documents["PodMonitor", "pagestream"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "operations", "path": "/metrics", "interval": "15s"}
    for pod in pods.values():
        assert endpoint["port"] in ports_of(pod)
        wanted = monitor["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= pod["metadata"]["labels"].items()


@SERVICES
def test_pod_runs_with_the_fewest_rights(pods, name):
    spec, container = pods[name]["spec"], container_of(pods[name])
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@SERVICES
def test_what_the_image_writes_lies_on_a_mounted_volume(pods, name):
    volumes = {volume["name"] for volume in pods[name]["spec"]["volumes"]}
    mounts = container_of(pods[name])["volumeMounts"]
    assert {mount["name"] for mount in mounts} == volumes
    paths = {mount["mountPath"] for mount in mounts}
    written = re.findall(r"(?:HF_HOME|TRITON_CACHE_DIR)=(\S+)", dockerfile_of(name))
    assert written
    for path in ["/tmp", *written]:
        assert any(path == mount or path.startswith(f"{mount}/") for mount in paths), path


def test_engine_asks_for_a_gpu_for_each_rank(pods):
    limits = container_of(pods["engine"])["resources"]["limits"]
    num_ranks = engine_config_of(pods["engine"]).model.tensor_parallel_size
    assert limits["nvidia.com/gpu"] == num_ranks


def engine_resources(folder: str) -> dict[str, int]:
    """Returns the CPUs and the GiB of memory that a kustomization gives an engine."""
    pod = build(folder)["StatefulSet", "engine"]["spec"]["template"]
    container = container_of(pod)
    (name,) = (m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
    (shm,) = (volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == name)
    assert shm["medium"] == "Memory"
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    return {
        "cpu": quantity(requests["cpu"]),
        "memory": quantity(requests["memory"]),
        "memory limit": quantity(limits["memory"]),
        "shared memory": quantity(shm["sizeLimit"]),
    }


def test_engine_of_several_ranks_gets_for_each_what_the_base_gives_one():
    pod = build(TENSOR_PARALLEL)["StatefulSet", "engine"]["spec"]["template"]
    num_ranks = engine_config_of(pod).model.tensor_parallel_size
    assert num_ranks > 1
    expected = {name: num_ranks * value for name, value in engine_resources(BASE).items()}
    assert engine_resources(TENSOR_PARALLEL) == expected


def test_tensor_parallel_changes_only_the_engine():
    base, overlay = build(BASE), build(TENSOR_PARALLEL)
    assert {key for key in overlay if overlay[key] != base.get(key)} == {("StatefulSet", "engine")}


@SERVICES
def test_image_runs_the_service_as_the_user_of_the_pod(pods, name):
    dockerfile = dockerfile_of(name)
    module = {"router": "router", "engine": "engine_service"}[name]
    context = pods[name]["spec"]["securityContext"]
    assert f'ENTRYPOINT ["python", "-m", "{module}"]' in dockerfile
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in dockerfile
    ports = " ".join(map(str, ports_of(pods[name]).values()))
    assert f"EXPOSE {ports}\n" in dockerfile


def test_image_of_the_router_holds_neither_engine_nor_kernels():
    dockerfile = dockerfile_of("router")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    assert " ".join(copied).split() == [
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "protos",
        "servicekit",
        "router",
    ]
    assert "'.[router]'" in dockerfile


def test_image_of_the_engine_can_compile_what_triton_writes():
    dockerfile = dockerfile_of("engine")
    assert re.search(r"apt-get install .*\bgcc libc6-dev\b", dockerfile)
    assert "Python.h" in dockerfile
    assert "TRITON_CACHE_DIR=/cache/" in dockerfile
