"""docs/metrics.md lists exactly the series of the router: a renamed one breaks dashboards."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from router.access.caller import Caller
from router.access.keys_file import Key
from router.server.metrics import ResourceUsage, RouterMetrics
from router.workers.worker_metrics import WorkerMetrics
from tests.fakes.fake_fleet import FakeFleet
from tests.router.server.test_metrics import STATISTICS

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
PREFIX = "pagestream_router_"


def router_registry() -> CollectorRegistry:
    metrics = RouterMetrics()
    caller = Caller(Key(name="a", sha256="0" * 64), b"secret")
    metrics.keys.keyring = SimpleNamespace(num_failures=0, callers=[caller])
    tls = SimpleNamespace(expirations={"--tls-cert": 9.0})
    metrics.certificates.sources = [SimpleNamespace(current=lambda: tls)]
    metrics.update(FakeFleet().engines(), STATISTICS, ResourceUsage())
    return metrics.registry


REGISTRIES = {
    "Router": router_registry(),
    "Router of several workers": WorkerMetrics(2).registry,
}


def rows(heading: str) -> list[str]:
    found = []
    for family in REGISTRIES[heading].collect():
        if family.name.startswith(PREFIX):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = sorted({key for sample in family.samples for key in sample.labels} - {"le"})
            shown = ", ".join(f"`{label}`" for label in labels)
            found.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return sorted(found)


@pytest.mark.parametrize("heading", REGISTRIES)
def test_document_lists_every_series_with_type_labels_and_meaning(heading):
    section = re.search(
        rf"^## {heading}$(.*?)(?=^## |\Z)", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert section, f"no section {heading}"
    listed = [line for line in section[1].splitlines() if line.startswith(f"| `{PREFIX}")]

    assert listed == rows(heading), "expected:\n" + "\n".join(rows(heading))


@pytest.mark.parametrize("heading", REGISTRIES)
def test_times_and_counts_carry_their_unit(heading):
    for row in rows(heading):
        name, kind = re.match(r"\| `(\S+)` \| (\w+)", row).groups()
        assert (kind == "counter") == name.endswith("_total")
        if kind == "histogram":
            assert name.endswith(("_seconds", "_tokens"))
        else:
            is_time = "_age_" in name or "_timestamp_" in name
            assert is_time == name.endswith("_seconds")
