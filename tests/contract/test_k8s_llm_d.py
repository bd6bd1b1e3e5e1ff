"""The pool, the picker and the route of llm-d agree with the engines."""

import re
from pathlib import Path

import yaml

from tests.contract.manifests import LLM_D, Deployed, container_of, ports_of

METRICS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
DEPLOYED = Deployed(LLM_D)
PICKER = DEPLOYED.find("Deployment", "picker")["spec"]["template"]


def options():
    arguments = container_of(PICKER)["args"]
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def config():
    [volume] = PICKER["spec"]["volumes"]
    data = DEPLOYED.find("ConfigMap", volume["configMap"]["name"])["data"]
    [mount] = container_of(PICKER)["volumeMounts"]
    path, folder = options()["config-file"], mount["mountPath"]
    return yaml.safe_load(data[path.removeprefix(f"{folder}/")])


def test_engines_speak_what_the_picker_reads():
    server = DEPLOYED.settings("engine")
    assert server.vllm_grpc
    assert server.vllm_metrics


def test_pool_holds_the_engines_and_names_the_picker():
    pool = DEPLOYED.find("InferencePool", "engine")
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    spec, engine = pool["spec"], DEPLOYED.pod("engine")
    assert spec["selector"]["matchLabels"].items() <= engine["metadata"]["labels"].items()
    assert spec["targetPorts"] == [{"number": ports_of(engine)["grpc"]}]
    [port] = DEPLOYED.find("Service", "engine")["spec"]["ports"]
    assert spec["appProtocol"] == port["appProtocol"]
    reference = spec["endpointPickerRef"]
    service = DEPLOYED.find("Service", reference["name"])["spec"]
    assert service["selector"].items() <= PICKER["metadata"]["labels"].items()
    [port] = service["ports"]
    assert reference["port"]["number"] == port["port"] == ports_of(PICKER)[port["targetPort"]]
    assert options()["pool-name"] == pool["metadata"]["name"]


def test_route_leads_to_the_pool():
    [rule] = DEPLOYED.find("HTTPRoute", "engine")["spec"]["rules"]
    [backend] = rule["backendRefs"]
    pool = DEPLOYED.find(backend["kind"], backend["name"])
    assert pool["apiVersion"].startswith(backend["group"] + "/")
    [match] = rule["matches"]
    assert match["path"]["value"] == "/vllm.grpc.engine.VllmEngine/"


def test_picker_maps_metrics_that_an_engine_has():
    assert (
        int(options()["model-server-metrics-port"])
        == ports_of(DEPLOYED.pod("engine"))["operations"]
    )
    [extractor] = (p for p in config()["plugins"] if p["type"] == "core-metrics-extractor")
    [engine] = extractor["parameters"]["engineConfigs"]
    assert engine.pop("name") == extractor["parameters"]["defaultEngine"]
    assert engine.pop("loraSpec") == ""
    documented = set(re.findall(r"^\| `(vllm:\w+)` \|", METRICS, re.MULTILINE))
    assert len(engine) == 4
    assert set(engine.values()) <= documented


def test_picker_refers_to_plugins_that_it_has():
    settings = config()
    names = {plugin["type"] for plugin in settings["plugins"]}
    [profile] = settings["schedulingProfiles"]
    [source] = settings["dataLayer"]["sources"]
    used = {entry["pluginRef"] for entry in [*profile["plugins"], *source["extractors"]]}
    assert used | {source["pluginRef"], settings["parser"]["pluginRef"]} == names


def test_gateways_and_the_picker_reach_the_engines():
    ports = ports_of(DEPLOYED.pod("engine"))
    *_, gateways, picker = DEPLOYED.find("NetworkPolicy", "engine")["spec"]["ingress"]
    assert [port["port"] for port in gateways["ports"]] == [ports["grpc"]]
    [peer] = picker["from"]
    assert peer["podSelector"]["matchLabels"].items() <= PICKER["metadata"]["labels"].items()
    assert [port["port"] for port in picker["ports"]] == [ports["operations"]]
