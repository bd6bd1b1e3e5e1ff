"""Every port of an overlay has a certificate that fits, or the overlay says that it is insecure."""

import re
from pathlib import Path

import pytest

from tests.contract.manifests import (
    DEPLOYED,
    FLEET,
    K8S,
    LAPTOP,
    LLM_D,
    MTLS,
    OWN_CERTIFICATES,
    TWO_MODELS,
    Deployed,
    arguments_of,
    build,
    build_with,
    container_of,
    secrets_of,
)

METRICS = (K8S.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
README = (K8S / "README.md").read_text(encoding="utf-8")
INSECURE = {(LAPTOP, "router"), (LAPTOP, "engine"), (LLM_D, "engine")}
"""What speaks plain text; all of it says why in the README."""
SERVICES = pytest.mark.parametrize("name", ["router", "engine"])
KEYS = {"tls.crt", "tls.key", "ca.crt"}
"""What cert-manager writes to a Secret."""
BY_HAND = {"api-keys": {"keys.yaml"}}
"""Secrets that somebody makes, and their files; `hub-token` need not be there."""
FIELDS = {
    *("secretName", "issuerRef", "duration", "renewBefore", "privateKey", "usages", "dnsNames"),
    *("isCA", "commonName"),
}
HOURS_OF_A_MONTH = 30 * 24


@pytest.fixture(
    params=DEPLOYED, ids=lambda deployed: f"{deployed.folder} {deployed.prefix}".strip()
)
def deployed(request) -> Deployed:
    """The routers and engines of each model of each overlay."""
    return request.param


def certificates(deployed):
    """Returns the Certificates of one model, by the name of their Secret."""
    found = [
        document
        for (kind, name), document in deployed.documents.items()
        if kind == "Certificate" and name.startswith(deployed.prefix)
    ]
    made = {document["spec"]["secretName"]: document["spec"] for document in found}
    assert len(made) == len(found), "two Certificates write one Secret"
    return made


def is_secure(deployed, name):
    return (deployed.folder, name) not in INSECURE


@SERVICES
def test_port_has_a_certificate_or_its_overlay_says_that_it_is_insecure(deployed, name):
    hosts = [a for a in arguments_of(deployed.pod(name)) if a.partition("=")[0].endswith("host")]
    settings = deployed.settings(name)
    if is_secure(deployed, name):
        assert hosts == ["--host=::"]
        assert settings.tls_cert
        assert settings.tls_key
    else:
        assert hosts == ["--insecure-host=::"]
        assert deployed.folder.rpartition("/")[2] in re.findall(r"`([\w-]+)`.*plain text", README)


@SERVICES
def test_services_say_what_their_ports_speak(deployed, name):
    plain = {"grpc": "kubernetes.io/h2c", "http": "http"}
    names = {"router": ("router", "router-headless"), "engine": ("engine",)}[name]
    for service in names:
        for port in deployed.find("Service", service)["spec"]["ports"]:
            expected = "https" if is_secure(deployed, name) else plain[port["name"]]
            assert port["appProtocol"] == expected


def test_router_and_engine_show_each_other_certificates_of_their_own_ca(deployed):
    router, engine = deployed.settings("router"), deployed.settings("engine")
    if not is_secure(deployed, "engine"):
        assert router.engine_tls_ca is None
        return
    assert router.engine_tls_ca
    assert router.engine_tls_cert
    assert engine.tls_client_ca
    made = certificates(deployed)
    shown = made[secret_name(deployed, "engine", engine.tls_cert)]
    client = made[secret_name(deployed, "router", router.engine_tls_cert)]
    # Of one CA, which has issued nothing else.
    issued = [spec for spec in made.values() if spec["issuerRef"] == shown["issuerRef"]]
    assert issued == [shown, client] or issued == [client, shown]
    assert router.engine_tls_name == deployed.prefix + "engine"
    assert shown["dnsNames"] == [router.engine_tls_name]
    assert "server auth" in shown["usages"]
    assert tuple(client["dnsNames"]) == engine.tls_client_names == (f"{deployed.prefix}router",)
    assert "client auth" in client["usages"]


def test_clients_find_the_name_that_they_asked_for(deployed):
    if not is_secure(deployed, "router"):
        assert not certificates(deployed)
        return
    made = certificates(deployed)
    shown = made[secret_name(deployed, "router", deployed.settings("router").tls_cert)]
    assert "server auth" in shown["usages"]
    services = [deployed.find("Service", name) for name in ("router", "router-headless")]
    wanted = {"localhost", *(service["metadata"]["name"] for service in services)}
    if deployed.folder == MTLS:
        namespace = services[0]["metadata"]["namespace"]
        wanted |= {f"router.{namespace}.svc", f"router.{namespace}.svc.cluster.local"}
        wanted.add(f"router-headless.{namespace}.svc.cluster.local")
    assert set(shown["dnsNames"]) == wanted


def secret_name(deployed, name, path):
    return secrets_of(deployed.pod(name))[str(Path(path).parent)]["secretName"]


@SERVICES
def test_files_that_options_name_are_those_of_a_mounted_secret(deployed, name):
    settings, pod = deployed.settings(name), deployed.pod(name)
    fields = {"tls_cert", "tls_key", "tls_client_ca", "engine_tls_ca", "engine_tls_cert"}
    fields |= {"engine_tls_key", "api_keys_file"}
    paths = {Path(path) for field in fields if (path := getattr(settings, field, None))}
    made, secrets = certificates(deployed), secrets_of(pod)
    for path in paths:
        secret = secrets[str(path.parent)]
        keys = KEYS if secret["secretName"] in made else BY_HAND[secret["secretName"]]
        items = {item["path"]: item["key"] for item in secret.get("items", ())}
        assert items.get(path.name, path.name) in keys
        assert items.keys() <= {path.name}, "more is mounted than is read"
        # A pod waits for a Secret that is not there, rather than start without.
        assert not secret.get("optional")
    required = {folder for folder, secret in secrets.items() if not secret.get("optional")}
    assert required == {str(path.parent) for path in paths}
    for mount in container_of(pod)["volumeMounts"]:
        if mount["mountPath"] in secrets:
            assert mount["readOnly"] is True
            # Kubernetes never changes a file that is mounted alone.
            assert "subPath" not in mount
            assert secrets[mount["mountPath"]]["defaultMode"] == 0o440


def test_no_pod_has_the_key_of_a_ca(deployed):
    authorities = {name for name, spec in certificates(deployed).items() if spec.get("isCA")}
    for name in ("router", "engine"):
        for secret in secrets_of(deployed.pod(name)).values():
            if secret["secretName"] in authorities:
                assert [item["key"] for item in secret["items"]] == ["tls.crt"]


def test_each_certificate_has_an_issuer_and_is_renewed_in_time(deployed):
    made = certificates(deployed)
    for spec in made.values():
        assert spec.keys() <= FIELDS
        reference = spec["issuerRef"]
        assert reference["group"] == "cert-manager.io"
        assert reference["name"].startswith(deployed.prefix)
        issuer = deployed.documents[reference["kind"], reference["name"]]["spec"]
        key = spec["privateKey"]["rotationPolicy"]
        hours, before = (
            int(spec[field].removesuffix("h")) for field in ("duration", "renewBefore")
        )
        assert HOURS_OF_A_MONTH <= before < hours
        if spec.get("isCA"):
            assert issuer == {"selfSigned": {}}
            # A renewed CA still fits what it issued before, and lives longer than all of it.
            assert key == "Never"
            assert all(
                before > int(one["duration"][:-1])
                for one in made.values()
                if one != spec and not one.get("isCA")
            )
        else:
            assert key == "Always"
            assert made[issuer["ca"]["secretName"]]["isCA"] is True
            # Those that a pod cannot use are for clients.
            assert set(spec["usages"]) - {"digital signature"} in ({"server auth"}, {"client auth"})


def test_two_models_share_no_certificate_and_no_ca():
    small, large = (certificates(d) for d in DEPLOYED if d.folder == TWO_MODELS)
    assert small
    assert not small.keys() & large.keys()
    issuers = [{spec["issuerRef"]["name"] for spec in one.values()} for one in (small, large)]
    assert not issuers[0] & issuers[1]


def test_mtls_asks_clients_for_a_certificate_of_the_ca_that_issues_theirs():
    deployed = Deployed(MTLS)
    made, path = certificates(deployed), deployed.settings("router").tls_client_ca
    authority = secret_name(deployed, "router", path)
    client = made["client"]
    assert client["usages"] == ["digital signature", "client auth"]
    issuer = deployed.find("Issuer", client["issuerRef"]["name"])["spec"]
    assert issuer["ca"]["secretName"] == authority
    for other in DEPLOYED:
        if other.folder != MTLS:
            assert other.settings("router").tls_client_ca is None


def test_fleet_asks_clients_for_a_key():
    for deployed in DEPLOYED:
        assert bool(deployed.settings("router").api_keys_file) == (deployed.folder == FLEET)


@pytest.mark.parametrize("folder", [FLEET, MTLS])
def test_without_cert_manager_all_else_is_the_same(folder, tmp_path):
    expected = {
        key: document
        for key, document in build(folder).items()
        if document["apiVersion"] != "cert-manager.io/v1"
    }
    assert len(expected) < len(build(folder))
    assert build_with(tmp_path, folder, OWN_CERTIFICATES) == expected


def test_readme_names_each_secret_and_makes_certificates_with_the_names_of_the_manifests():
    for deployed in DEPLOYED:
        if deployed.prefix:
            continue
        for name in ("router", "engine"):
            for secret in secrets_of(deployed.pod(name)).values():
                required = not secret.get("optional")
                assert not required or f"| `{secret['secretName']}` |" in README
    made = certificates(Deployed(FLEET))
    commands = dict(re.findall(r"^pagestream certs (\w+) --names (.+)$", README, re.MULTILINE))
    assert commands == {
        "clients": ",".join(made["router-server"]["dnsNames"]),
        "engines": f"engine --client-name {made['router-client']['dnsNames'][0]}",
    }


def test_alert_comes_when_a_renewal_has_failed_and_before_the_certificate_ends():
    rules = Deployed(FLEET).find("PrometheusRule", "pagestream")
    monitor = Deployed(FLEET).find("PodMonitor", "pagestream")
    assert rules["metadata"]["labels"] == monitor["metadata"]["labels"]
    [group] = rules["spec"]["groups"]
    expires, _ = group["rules"]
    [days] = re.findall(r"- time\(\) < (\d+) \* 86400$", expires["expr"])
    leaves = [spec for spec in certificates(Deployed(FLEET)).values() if not spec.get("isCA")]
    assert 7 <= int(days) < min(int(spec["renewBefore"][:-1]) for spec in leaves) / 24 - 7
    for rule in group["rules"]:
        names = re.findall(r"pagestream_\w+", rule["expr"])
        assert names
        for name in names:
            assert f"| `{name}` |" in METRICS
