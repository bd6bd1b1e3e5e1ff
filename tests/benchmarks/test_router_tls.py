"""The benchmark of certificates runs, and measures what it says."""

import json

from benchmarks.router import tls


def test_plain_text_and_certificates_are_measured_side_by_side(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tls, "_REQUESTS", 2)
    monkeypatch.setattr(tls, "_STREAMS", 2)
    monkeypatch.setattr(tls, "_NUM_STEPS", 3)
    output = tmp_path / "tls.json"
    monkeypatch.setattr("sys.argv", ["tls", "--pairs", "1", "--output", str(output)])

    tls.main()

    figures = json.loads(output.read_text())["figures"]
    assert set(figures) == {"first_token_ms", "tokens_per_s", "router_cpu_us_per_token"}
    for row in figures.values():
        assert row["plain"] > 0 < row["mtls"]
