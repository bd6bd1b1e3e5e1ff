"""The engine's series are a contract with dashboards and alerts: a golden list and a document."""

import re
from pathlib import Path
from types import SimpleNamespace

from engine_service.core.types import FinishReason
from engine_service.errors import RequestError
from engine_service.server.metrics import OUTCOMES, EngineMetrics
from tests.engine_service.core.fake_executor import make_info, make_rank_stats

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "engine_metrics.txt"
DOCUMENT = ROOT / "docs" / "metrics.md"
PREFIX = "pagestream_engine_"


CERTIFICATE = SimpleNamespace(current=lambda: SimpleNamespace(expirations={"--tls-cert": 9.0}))


def families():
    metrics = EngineMetrics(make_info().model_name)
    metrics.set_info(make_info())
    metrics.ranks.update([make_rank_stats()])
    metrics.certificates.sources = [CERTIFICATE]
    return [family for family in metrics.registry.collect() if family.name.startswith(PREFIX)]


def full_name(family):
    return family.name + ("_total" if family.type == "counter" else "")


def labels(family):
    return sorted({key for sample in family.samples for key in sample.labels} - {"le"})


def without_model(labels):
    return [value for label, value in labels.items() if label != "model_name"]


def test_every_series_names_the_model():
    for family in families():
        for sample in family.samples:
            assert sample.labels["model_name"] == make_info().model_name, sample


def test_series_are_those_of_the_golden_list():
    lines = [
        f"{full_name(family)} {family.type} {','.join(labels(family))}".rstrip()
        for family in families()
    ]
    found = "\n".join(sorted(lines)) + "\n"
    assert found == GOLDEN.read_text("utf-8"), f"found:\n{found}"


def test_document_lists_every_series_with_type_labels_and_meaning():
    rows = []
    for family in families():
        shown = ", ".join(f"`{label}`" for label in labels(family))
        rows.append(f"| `{full_name(family)}` | {family.type} | {shown} | {family.documentation} |")
    section = re.search(
        r"^## Engine$(.*?)(?=^## |\Z)", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert section, "no section Engine"
    listed = [line for line in section[1].splitlines() if line.startswith(f"| `{PREFIX}")]
    assert listed == sorted(rows), "expected:\n" + "\n".join(sorted(rows))


def test_only_counters_are_totals():
    for family in families():
        assert (family.type == "counter") == full_name(family).endswith("_total")


def test_every_outcome_and_phase_is_there_before_it_happens():
    samples = {
        (sample.name, *without_model(sample.labels)): sample.value
        for family in families()
        for sample in family.samples
        if "le" not in sample.labels
    }
    for outcome in OUTCOMES:
        assert samples[f"{PREFIX}requests_total", outcome] == 0
    for phase in ("schedule", "prepare", "launch", "wait", "update", "device", "total"):
        assert samples[f"{PREFIX}step_time_seconds_count", phase] == 0


def test_every_way_to_end_a_request_has_an_outcome():
    reasons = {kind.reason.lower() for kind in RequestError.__subclasses__()}
    finishes = {reason.value for reason in FinishReason}
    # A request for tokenizer files is not a request for tokens, nor is a stream of many of them.
    assert reasons - {"no_tokenizer", "epoch_mismatch"} | finishes <= set(OUTCOMES)
