"""The manifests are valid, agree with each other and with what the services accept."""

import json
import re
from ipaddress import ip_address, ip_network

import kubernetes_validate
import pytest

from router.engines.discovery import ServiceName
from tests.contract.manifests import (
    BASE,
    DEPLOYED,
    FLEET,
    FOLDERS,
    K8S,
    LAPTOP,
    PARTS,
    TENSOR_PARALLEL,
    TLS,
    TWO_MODELS,
    Deployed,
    build,
    build_with,
    container_of,
    dockerfile_of,
    gibibytes,
    ports_of,
    secrets_of,
)

OLDEST_KUBERNETES = 31
NEWEST_KUBERNETES = int(kubernetes_validate.latest_version().split(".")[1])
CUSTOM = {"Certificate", "HTTPRoute", "InferencePool", "Issuer"}
CUSTOM |= {"PodMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds of which Kubernetes has no schema; checked by hand below."""
SERVICES = pytest.mark.parametrize("name", ["router", "engine"])


@pytest.fixture(
    params=DEPLOYED, ids=lambda deployed: f"{deployed.folder} {deployed.prefix}".strip()
)
def deployed(request) -> Deployed:
    """The routers and engines of each model of each kustomization."""
    return request.param


def test_every_kustomization_is_tested():
    folders = {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")}
    assert folders == {*FOLDERS, *PARTS}


def test_it_holds_the_objects_of_two_services(deployed):
    expected = {
        (kind, deployed.prefix + name)
        for name, kinds in {"router": ("Deployment",), "engine": ("StatefulSet",)}.items()
        for kind in ("Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", *kinds)
    }
    expected.add(("Service", deployed.prefix + "router-headless"))
    assert {key for key in deployed.documents if key[1].startswith(deployed.prefix)} >= expected
    assert set(build(BASE)) == {
        (kind, name.removeprefix(deployed.prefix)) for kind, name in expected
    }


def in_between(minor):
    return pytest.param(minor, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "minor",
    [
        OLDEST_KUBERNETES,
        *map(in_between, range(OLDEST_KUBERNETES + 1, NEWEST_KUBERNETES)),
        NEWEST_KUBERNETES,
    ],
)
def test_every_object_fits_the_schema_of_kubernetes(minor):
    # Many objects of an overlay are those of the base.
    different = {
        json.dumps(document): document
        for folder in FOLDERS
        for (kind, _), document in build(folder).items()
        if kind not in CUSTOM
    }
    assert len(different) > 2 * len(build(BASE))
    for document in different.values():
        kubernetes_validate.validate(document, f"1.{minor}", strict=True)


def test_validation_refuses_a_misspelt_field():
    document = {**build(BASE)["Service", "router"], "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, f"1.{OLDEST_KUBERNETES}", strict=True)


@SERVICES
def test_arguments_are_accepted_by_the_service_and_name_the_declared_ports(deployed, name):
    settings, pod = deployed.settings(name), deployed.pod(name)
    ports = {"grpc": settings.port, "operations": settings.operations_port}
    if name == "router":
        ports["http"] = settings.http_port
    assert ports_of(pod) == ports
    # IPv4, IPv6 or both, whatever the cluster has.
    assert settings.host == "::"


@SERVICES
def test_probes_ask_the_operations_port(deployed, name):
    container = container_of(deployed.pod(name))
    assert {
        probe: container[probe]["httpGet"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    } == {
        "startupProbe": {
            "port": "operations",
            "path": {"router": "/livez", "engine": "/readyz"}[name],
        },
        "readinessProbe": {"port": "operations", "path": "/readyz"},
        "livenessProbe": {"port": "operations", "path": "/livez"},
    }


def test_engine_has_half_an_hour_to_load_before_anything_restarts_it(deployed):
    probe = container_of(deployed.pod("engine"))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


@SERVICES
def test_pod_lives_longer_than_its_drain(deployed, name):
    pod = deployed.pod(name)
    hooks = container_of(pod).get("lifecycle", {})
    pause = hooks.get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = deployed.settings(name).drain_grace_seconds
    assert pod["spec"]["terminationGracePeriodSeconds"] >= pause + drain + 10


@SERVICES
def test_selectors_find_the_pods_of_their_model_and_no_others(deployed, name):
    own = deployed.pod(name)["metadata"]["labels"]
    others = [
        other.pod(service)["metadata"]["labels"]
        for other in DEPLOYED
        for service in ("router", "engine")
        if other.folder == deployed.folder and (other, service) != (deployed, name)
    ]
    kind = {"router": "Deployment", "engine": "StatefulSet"}[name]
    selectors = [
        deployed.find("Service", name)["spec"]["selector"],
        deployed.find(kind, name)["spec"]["selector"]["matchLabels"],
        deployed.find("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
        deployed.find("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"],
        *(
            spread["labelSelector"]["matchLabels"]
            for spread in deployed.pod(name)["spec"]["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector.items() <= own.items()
        assert not any(selector.items() <= labels.items() for labels in others)


@SERVICES
def test_service_leads_to_the_ports_of_its_clients(deployed, name):
    ports = ports_of(deployed.pod(name))
    del ports["operations"]
    spec = deployed.find("Service", name)["spec"]
    assert {port["targetPort"]: port["port"] for port in spec["ports"]} == ports


def test_clients_that_spread_their_calls_find_each_ready_router(deployed):
    spec = deployed.find("Service", "router-headless")["spec"]
    assert spec["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in spec
    assert spec["selector"] == deployed.find("Service", "router")["spec"]["selector"]
    [port] = spec["ports"]
    assert {port["targetPort"]: port["port"]} == {"grpc": ports_of(deployed.pod("router"))["grpc"]}
    # Those that do not are asked to connect again from time to time.
    assert deployed.settings("router").max_connection_age_seconds > 0


def test_router_has_memory_for_the_requests_that_it_takes(deployed):
    limit = container_of(deployed.pod("router"))["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    # docs/operations.md: 18 times the bytes of text, 80 MB for each text that is being tokenized;
    # the rest is a router at rest and its index.
    settings = deployed.settings("router")
    worst = 18 * settings.max_request_bytes + 80_000_000 * settings.tokenizer_threads
    assert worst + (700 << 20) <= gibibytes(limit) << 30


def test_router_follows_the_engines_of_its_model_by_the_name_of_their_service(deployed):
    name = deployed.find("StatefulSet", "engine")["spec"]["serviceName"]
    assert name == deployed.prefix + "engine"
    spec = deployed.find("Service", "engine")["spec"]
    # Its name is then that of the pods, which no port is mapped before, ready or not.
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    settings = deployed.settings("router")
    port = ports_of(deployed.pod("engine"))["grpc"]
    assert settings.engine_dns == ServiceName(host=name, port=port)
    assert settings.engines == ()


def rules(policy, direction, peer):
    """Returns the pairs of peer and ports that a policy's rules allow."""
    return [
        (rule.get(peer), {port["port"] for port in rule["ports"]})
        for rule in policy["spec"][direction]
    ]


def test_only_routers_reach_engines_and_only_prometheus_reads_metrics(deployed):
    router, engine = (ports_of(deployed.pod(name)) for name in ("router", "engine"))
    labels = {name: deployed.pod(name)["metadata"]["labels"] for name in ("router", "engine")}
    at_router, at_engine = (deployed.find("NetworkPolicy", name) for name in ("router", "engine"))
    for policy in (at_router, at_engine):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    clients, router_metrics = rules(at_router, "ingress", "from")
    assert clients == (None, {router["grpc"], router["http"]})
    routers, engine_metrics = rules(at_engine, "ingress", "from")[:2]
    [peer] = routers[0]
    assert set(peer) == {"podSelector"}
    assert peer["podSelector"]["matchLabels"].items() <= labels["router"].items()
    assert routers[1] == {engine["grpc"]}
    for (peers, ports), own in ((router_metrics, router), (engine_metrics, engine)):
        [peer] = peers
        assert ports == {own["operations"]}
        # By expressions, which the labels of overlays do not reach.
        assert {
            kind: {e["key"]: e["values"] for e in selector["matchExpressions"]}
            for kind, selector in peer.items()
        } == {
            "namespaceSelector": {"kubernetes.io/metadata.name": ["monitoring"]},
            "podSelector": {"app.kubernetes.io/name": ["prometheus"]},
        }
        assert all(set(selector) == {"matchExpressions"} for selector in peer.values())


def test_pods_reach_what_they_need_and_nothing_else(deployed):
    to_engines, router_dns = rules(deployed.find("NetworkPolicy", "router"), "egress", "to")
    [peer] = to_engines[0]
    engine = deployed.pod("engine")
    assert peer["podSelector"]["matchLabels"].items() <= engine["metadata"]["labels"].items()
    assert to_engines[1] == {ports_of(engine)["grpc"]}
    hub, engine_dns = rules(deployed.find("NetworkPolicy", "engine"), "egress", "to")
    # Anywhere but where clusters, their API and the metadata of clouds are.
    assert {peer["ipBlock"]["cidr"] for peer in hub[0]} == {"0.0.0.0/0", "::/0"}
    excepted = [ip_network(text) for peer in hub[0] for text in peer["ipBlock"]["except"]]
    for text in ("10.96.0.1", "172.20.0.1", "192.168.1.1", "169.254.169.254", "fd00:10:96::1"):
        assert any(ip_address(text) in network for network in excepted), text
    assert hub[1] == {443}
    assert router_dns == engine_dns
    assert router_dns[1] == {53}


@pytest.mark.parametrize("folder", [FLEET, TWO_MODELS])
def test_one_pod_monitor_scrapes_the_operations_port_of_all(folder):
    monitors = [d for (kind, _), d in build(folder).items() if kind == "PodMonitor"]
    # With two, each pod would be counted twice.
    [monitor] = monitors
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    # What kube-prometheus-stack selects under its usual name.
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "operations", "path": "/metrics", "interval": "15s"}
    wanted = monitor["spec"]["selector"]["matchLabels"]
    for deployed in DEPLOYED:
        if deployed.folder == folder:
            for name in ("router", "engine"):
                assert endpoint["port"] in ports_of(deployed.pod(name))
                assert wanted.items() <= deployed.pod(name)["metadata"]["labels"].items()


@SERVICES
def test_pod_runs_with_the_fewest_rights(deployed, name):
    spec, container = deployed.pod(name)["spec"], container_of(deployed.pod(name))
    account = deployed.find("ServiceAccount", name)
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    resources = container["resources"]
    assert set(resources["requests"]) == {"cpu", "memory", "ephemeral-storage"}
    assert set(resources["limits"]) >= {"memory", "ephemeral-storage"}


@SERVICES
def test_what_the_image_writes_lies_on_a_mounted_volume(deployed, name):
    mounts = container_of(deployed.pod(name))["volumeMounts"]
    volumes = {volume["name"] for volume in deployed.pod(name)["spec"]["volumes"]}
    if name == "engine":
        claims = deployed.find("StatefulSet", name)["spec"].get("volumeClaimTemplates", ())
        volumes |= {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"] for mount in mounts} == volumes
    paths = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
    written = re.findall(r"(?:HF_HOME|TRITON_CACHE_DIR)=(\S+)", dockerfile_of(name))
    assert written
    for path in ["/tmp", *written]:
        assert any(path == mount or path.startswith(f"{mount}/") for mount in paths), path


def test_hub_token_is_a_file_that_need_not_be_there(deployed):
    pod = deployed.pod("engine")
    [folder] = (path for path, secret in secrets_of(pod).items() if secret.get("optional"))
    assert secrets_of(pod)[folder]["secretName"] == "hub-token"
    assert {"name": "HF_TOKEN_PATH", "value": f"{folder}/token"} in container_of(pod)["env"]


def test_engine_asks_for_a_gpu_for_each_rank(deployed):
    spec = deployed.pod("engine")["spec"]
    limits = container_of(deployed.pod("engine"))["resources"]["limits"]
    model = deployed.engine_config().model
    if deployed.folder == LAPTOP:
        assert model.device == "cpu"
        assert not {"nodeSelector", "tolerations"} & set(spec)
        assert "nvidia.com/gpu" not in limits
        return
    assert limits["nvidia.com/gpu"] == model.tensor_parallel_size
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    [toleration] = spec["tolerations"]
    assert toleration["key"] == "nvidia.com/gpu"


def engine_resources(folder: str) -> dict[str, int]:
    """Returns the CPUs and the GiB of memory that a kustomization gives an engine."""
    pod = Deployed(folder).pod("engine")
    container = container_of(pod)
    (name,) = (m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
    (shm,) = (volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == name)
    assert shm["medium"] == "Memory"
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    return {
        "cpu": int(requests["cpu"]),
        "memory": gibibytes(requests["memory"]),
        "memory limit": gibibytes(limits["memory"]),
        "shared memory": gibibytes(shm["sizeLimit"]),
    }


def test_engine_of_several_ranks_gets_for_each_what_the_base_gives_one():
    num_ranks = Deployed(TENSOR_PARALLEL).engine_config().model.tensor_parallel_size
    assert num_ranks > 1
    expected = {name: num_ranks * value for name, value in engine_resources(BASE).items()}
    assert engine_resources(TENSOR_PARALLEL) == expected


def test_tensor_parallel_changes_only_the_engine(tmp_path):
    base, overlay = build_with(tmp_path, BASE, TLS), build(TENSOR_PARALLEL)
    assert {key for key in overlay if overlay[key] != base.get(key)} == {("StatefulSet", "engine")}
