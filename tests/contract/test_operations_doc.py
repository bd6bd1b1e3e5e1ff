"""docs/operations.md tells what to do about every error there is, and names real series."""

import re
from pathlib import Path

from engine_service.server.metrics import EngineMetrics
from protos.wire.status import STATUS_CODES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_table_of_errors_holds_every_reason_with_its_code():
    rows = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| .+ \|$", DOCUMENT, re.MULTILINE)
    assert rows == [(reason.value, code.name) for reason, code in STATUS_CODES.items()]


def test_metrics_named_are_metrics_that_exist():
    named = set(re.findall(r"`(pagestream_engine_\w+)`", DOCUMENT))
    exported = {
        sample.name
        for family in EngineMetrics("small").registry.collect()
        for sample in family.samples
    }
    assert named
    assert named <= exported
