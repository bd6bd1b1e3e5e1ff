"""The committed code is what the committed protos give."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / ".venv-gen" / "bin" / "python"
PROTOS = sorted(path.relative_to(ROOT) for path in ROOT.glob("protos/pagestream/*/v1/*.proto"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    assert GENERATOR.exists(), "the generator is missing: run `make setup`"
    folder = tmp_path_factory.mktemp("generated")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    command = [GENERATOR, "-m", "grpc_tools.protoc", "-I", ".", *outputs, *PROTOS]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    return folder


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.name)
@pytest.mark.parametrize("ending", ["_pb2.py", "_pb2.pyi", "_pb2_grpc.py"])
def test_committed_code_is_current(generated, proto, ending):
    name = proto.with_name(proto.stem + ending)
    assert (ROOT / name).read_bytes() == (generated / name).read_bytes(), "run `make gen`"
