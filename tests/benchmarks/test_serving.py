"""The benchmark of an engine behind its router: what its client reads, and a whole run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.router.connections import Call
from benchmarks.serving import table
from benchmarks.serving_client import DOORS
from protos.pagestream.router.v1 import router_pb2

ROOT = Path(__file__).parents[2]
SECONDS = 300


def call_of(*chunks):
    return Call(started=0.5, chunks=list(enumerate(chunks, start=1)), ended=9.0)


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text_event(text):
    return event(choices=[{"index": 0, "text": text}], usage=None)


def grpc_message(**fields):
    data = router_pb2.GenerateResponse(**fields).SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def test_http_client_notes_when_text_came_and_counts_the_tokens_used():
    call = call_of(
        text_event("one"),
        text_event(""),
        text_event(" two"),
        event(choices=[], usage={"completion_tokens": 3}),
        b"data: [DONE]\n\n",
    )

    assert DOORS["HTTP"].read(call) == ([1, 3], 3)


def test_http_client_tells_an_answer_that_failed_on_its_way():
    call = call_of(text_event("one"), event(error={"message": "the engine is gone"}))

    with pytest.raises(ConnectionError, match="the engine is gone"):
        DOORS["HTTP"].read(call)


def test_grpc_client_notes_when_text_came_and_counts_all_tokens():
    call = call_of(
        grpc_message(text="one", token_ids=[5]),
        grpc_message(token_ids=[6]),
        grpc_message(text=" two", token_ids=[7, 8]),
    )

    assert DOORS["gRPC"].read(call) == ([1, 3], 4)


def test_table_has_medians_and_ratios_to_the_first_door():
    def runs(rates, times):
        return {
            "streams": [{"tokens_per_s": rate} for rate in rates],
            "single": [{"first_token_ms": time} for time in times],
        }

    found = table(
        {"gRPC": runs((25_000, 20_000, 26_000), (4.0, 6.0)), "HTTP": runs((24_000,), (5.5,))}
    )

    assert found.splitlines()[2:] == [
        "| gRPC | 25,000 (1.00) | 5.0 (1.00) |",
        "| HTTP | 24,000 (0.96) | 5.5 (1.10) |",
    ]


@pytest.mark.slow
def test_both_doors_are_measured_and_written(tmp_path):
    output = tmp_path / "results.json"
    arguments = ["--quick", "--repeats", "1", "--commit", "abc", "--output", str(output)]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *arguments],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )

    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results["commit"] == "abc"
    for door in ("gRPC", "HTTP"):
        assert f"| {door} | " in done.stdout
        for [run] in results["runs"][door].values():
            assert min(run.values()) > 0
