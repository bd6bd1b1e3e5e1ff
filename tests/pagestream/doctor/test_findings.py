"""`pagestream doctor`: what each machine lacks, and what to do about it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pagestream.doctor import system
from pagestream.doctor.accelerator import Machine, accelerator_findings
from pagestream.doctor.finding import Finding, State, as_json, as_text
from servicekit.errors import StartupError

ROOT = Path(__file__).parents[3]
REPORT = {"torch": "2.13.0", "cuda": "13.0", "gpus": ["9.0"], "fault": None, "tool": None}


def machine(num_gpus=1, has_torch=True, **report):
    return Machine(
        num_gpus=num_gpus,
        query=lambda fields: [["NVIDIA H200", "143771 MiB", "580.65"]] * num_gpus,
        report=lambda: REPORT | report,
        has_torch=has_torch,
        check_packages=lambda: None,
    )


def found(one, environment=()):
    return {f.name: f for f in accelerator_findings(one, dict(environment))}


def test_good_machine_lacks_nothing():
    findings = found(machine(2))
    assert all(one.state is State.OK for one in findings.values())
    assert findings["GPU"].detail == "2 x NVIDIA H200, 143771 MiB, driver 580.65"
    assert findings["torch"].detail == "2.13.0, for CUDA 13.0"


@pytest.mark.parametrize(
    ("one", "name", "detail"),
    [
        (machine(cuda=None), "torch", "install a build for CUDA"),
        (machine(fault="driver too old"), "torch", "cannot use the GPU: driver too old; install"),
        (machine(gpus=["7.5"]), "torch", "capability is 7.5, but Triton needs 8.0"),
        (machine(tool="there is no gcc; install it"), "compiler and headers", "no gcc; install"),
        (dataclasses.replace(machine(), query=lambda fields: None), "GPU", "install NVIDIA's"),
    ],
)
def test_what_keeps_an_engine_from_the_gpu_is_missing(one, name, detail):
    finding = found(one)[name]
    assert finding.state is State.MISSING
    assert detail in finding.detail


def test_machine_without_gpu_needs_no_compiler():
    findings = found(machine(0, cuda=None, fault="no driver", tool="there is no gcc; install it"))
    assert {one.state for one in findings.values()} == {State.OK, State.NOTE}
    assert findings["compiler and headers"].state is State.NOTE


def test_machine_without_torch_is_one_for_routers():
    findings = found(machine(0, has_torch=False))
    assert findings["engine packages"].state is State.NOTE
    assert "pip install 'pagestream[engine]'" in findings["engine packages"].detail
    assert "torch" not in findings


def test_torch_that_cannot_be_imported_is_missing():
    def report():
        raise OSError("libcudart.so.13: cannot open shared object file")

    finding = found(dataclasses.replace(machine(), report=report))["torch"]
    assert finding.state is State.MISSING
    assert "libcudart.so.13" in finding.detail


def test_packages_that_an_engine_lacks_are_named():
    def check():
        raise StartupError("packages are not installed: triton; run pip")

    finding = found(dataclasses.replace(machine(), check_packages=check))["engine packages"]
    assert finding == Finding(
        "engine packages", State.MISSING, "packages are not installed: triton; run pip"
    )


def test_gpus_that_are_hidden_or_not_there_are_told():
    hidden = found(machine(2), {"CUDA_VISIBLE_DEVICES": "1"})["GPU"]
    assert (hidden.state, "shows 1 of them" in hidden.detail) == (State.NOTE, True)
    wrong = found(machine(2), {"CUDA_VISIBLE_DEVICES": "2"})["GPU"]
    assert (wrong.state, "this machine has 2 GPUs" in wrong.detail) == (State.MISSING, True)


def test_folder_that_cannot_be_written_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(system.os, "access", lambda path, mode: False)
    findings = {f.name: f for f in system.system_findings({"HF_HOME": str(tmp_path)}, 0)}
    disk = findings[f"disk for models ({tmp_path}/hub)"]
    assert (disk.state, "set HF_HOME" in disk.detail) == (State.MISSING, True)
    assert findings["shared memory (/dev/shm)"].state is State.MISSING


def test_hub_token_is_found_where_the_hub_looks_for_it(tmp_path):
    def token(**environment):
        findings = system.system_findings({"HF_HOME": str(tmp_path)} | environment, 0)
        return next(one for one in findings if one.name == "hub token")

    assert token().state is State.NOTE
    assert token(HF_TOKEN="x").state is State.OK
    (tmp_path / "token").write_text("secret")
    assert token() == Finding("hub token", State.OK, f"in {tmp_path}/token")


def test_report_for_people_has_one_line_each_and_for_programs_one_object():
    findings = [Finding("a", State.OK, "x"), Finding("bc", State.MISSING, "y; do z")]
    assert as_text(findings) == "OK       a   x\nmissing  bc  y; do z\n\n1 missing"
    assert as_json(findings) == {
        "ok": False,
        "checks": [
            {"name": "a", "state": "ok", "detail": "x"},
            {"name": "bc", "state": "missing", "detail": "y; do z"},
        ],
    }


def test_command_reports_on_a_machine_without_torch():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from pagestream.doctor.command import main; sys.exit(main(['--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    report = json.loads(done.stdout)
    assert done.returncode == int(not report["ok"])
    states = {one["name"]: one["state"] for one in report["checks"]}
    assert states["engine packages"] == "note"
    assert states["router packages"] == "ok"
