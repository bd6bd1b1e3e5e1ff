"""An installed wheel serves a request: nothing it needs stays behind in the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from examples.demo.services import Services
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from tests.engine_service.tiny_models import Shape, make_model
from tests.fakes import small_tokenizer

ROOT = Path(__file__).parents[2]
SHAPE = Shape(num_heads=4, num_kv_heads=2, head_dim=16, is_tied=True, vocab_size=512)
PACKAGES = ("protos", "servicekit", "router", "engine_service", "kernels", "pagestream")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, timeout=100)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Installs the wheel alone into a folder; its requirements are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # Setuptools would pack what an earlier build left there, deleted modules included.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), ".")
    (wheel,) = (folder / "dist").glob("*.whl")
    pip("install", "--no-deps", "--target", str(folder / "site"), str(wheel))
    return folder / "site"


def test_wheel_holds_every_package(installed):
    script = f"import {', '.join(PACKAGES)}\n" + "".join(
        f"print({name}.__file__)\n" for name in PACKAGES
    )
    output = subprocess.run(
        [sys.executable, "-c", script],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    assert [Path(line).parent.parent for line in output.split()] == [installed] * len(PACKAGES)
    assert list(installed.glob("protos/pagestream/*/v1/*.proto"))


@pytest.mark.parametrize("name", PACKAGES)
def test_wheel_says_that_a_package_is_typed(installed, name):
    assert (installed / name / "py.typed").is_file()


async def test_installed_wheel_serves_a_request(installed, tmp_path):
    model = make_model(tmp_path / "model", SHAPE)
    small_tokenizer.save(model.folder)
    options = ["--model", str(model.folder), "--device", "cpu", "--num-blocks", "16"]
    async with Services(tmp_path, folder=installed) as services:
        engine = services.start("engine", ["engine_service", *options])
        router = services.start("router", ["router", "--engines", engine.address])
        await services.wait_ready([engine, router], 90, lambda service, state: None)
        async with grpc.aio.insecure_channel(router.address) as channel:
            request = router_pb2.GenerateRequest(
                text="introduce yourself",
                sampling_params=router_pb2.SamplingParams(max_tokens=4, ignore_eos=True),
            )
            # A process that runs a file of the wheel lays it out.
            chat = router_pb2.GenerateRequest(
                chat=router_pb2.Chat(messages=[router_pb2.ChatMessage(role="user", content="hi")]),
                sampling_params=request.sampling_params,
            )
            for prompt in (request, chat):
                call = router_pb2_grpc.RouterServiceStub(channel).Generate(prompt, timeout=60)
                responses = [response async for response in call]
                assert responses[-1].finish.completion_token_count == 4
