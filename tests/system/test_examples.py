"""The commands of docs/clients.md print, in full and in order, what an engine generated."""

import base64
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import tokenizers
from google.rpc.error_details_pb2 import ErrorInfo

from examples.demo.services import Services
from tests.fakes import fake_engine, small_tokenizer
from tests.fakes.command import Ended, run_command
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig, expected_tokens

ROOT = Path(__file__).parents[2]
QUESTION = "introduce yourself"
SEED = 7
NUM_TOKENS = 256
DOCUMENT = (ROOT / "docs" / "clients.md").read_text("utf-8")
ADDRESS = "127.0.0.1:50050"
"""Where the router is in the document."""
NEEDS = {
    "Node": ("npm",),
    "C++": ("g++", "pkg-config", "protoc", "grpc_cpp_plugin"),
    "Java": ("javac", "protoc", "grpc_java_plugin", "/usr/share/java/grpc-netty.jar"),
}
"""Programs and files that the commands of a section need beside our own environment."""


@pytest.fixture
async def engine(tmp_path, monkeypatch):
    """An engine whose draws are known, though the clients ask for no seed."""
    monkeypatch.setattr(fake_engine.secrets, "randbits", lambda _: SEED)
    folder = small_tokenizer.save(tmp_path / "tokenizer")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = FakeEngineConfig(tokenizer=folder, vocab_size=tokenizer.get_vocab_size())
    async with FakeEngine(config) as engine:
        yield engine


@pytest.fixture
async def router(engine, tmp_path):
    """A router of its own process before that engine."""
    async with Services(tmp_path / "logs") as services:
        router = services.start("router", ["router", "--engines", engine.address])
        await services.wait_ready([router], 60, lambda service, state: None)
        yield router


@pytest.fixture
def checkout(tmp_path):
    """What the commands need of the repository, in a folder that they may write to."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "protos").symlink_to(ROOT / "protos")
    ignored = shutil.ignore_patterns("node_modules", "demo", "__pycache__")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=ignored)
    return folder


def expected_text(engine: FakeEngine, num_tokens: int = NUM_TOKENS) -> str:
    """Returns the text of what the engine generated for the one request that it got."""
    (submission,) = engine.submissions
    prompt = list(submission.request.prompt_token_ids)
    tokenizer = tokenizers.Tokenizer.from_file(str(engine.config.tokenizer / "tokenizer.json"))
    assert QUESTION in tokenizer.decode(prompt)
    tokens = expected_tokens(prompt, num_tokens, seed=SEED, config=engine.config)
    return tokenizer.decode(tokens)


def skip_without(needed: Iterable[str]) -> None:
    """Skips a test that lacks a program or a file."""
    missing = [name for name in needed if not (shutil.which(name) or Path(name).exists())]
    if missing:
        pytest.skip(f"{', '.join(missing)} is missing")


async def run_section(heading: str, address: str, folder: Path) -> Ended:
    """Runs the commands of a section of the document.

    Args:
        heading: The section.
        address: Where the router is.
        folder: Where to run them.
    """
    skip_without(NEEDS.get(heading, ()))
    section = re.search(
        rf"^## {re.escape(heading)}$.*?^```$\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL
    )
    assert section, f"no commands in section {heading}"
    commands = section[1].replace(ADDRESS, address)
    path = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}\n"
    return await run_command(("bash", "-ec", path + commands), folder, 300)


async def test_python_client_prints_the_whole_answer(engine, router, checkout):
    code, output, errors = await run_section("Python", router.address, checkout)

    assert (code, errors) == (0, "")
    assert output == expected_text(engine) + "\n"


async def test_node_client_prints_the_whole_answer(engine, router, checkout):
    if shutil.which("npm") is None and os.environ.get("CI") == "true":
        pytest.fail("npm is missing")
    code, output, errors = await run_section("Node", router.address, checkout)

    assert code == 0, errors
    assert output.endswith("\n" + expected_text(engine) + "\n")
    # Nobody listens on port 1: the client says so and fails, rather than printing nothing.
    command = ("node", "generate.mjs", "127.0.0.1:1", QUESTION)
    code, output, errors = await run_command(command, checkout / "examples")
    assert code == 1
    assert errors.startswith("UNAVAILABLE: ")


async def test_buf_learns_all_from_reflection(engine, router, checkout):
    code, output, errors = await run_section("buf curl and grpcurl", router.address, checkout)

    assert (code, errors) == (0, "")
    joined = re.sub(r"}\s*{", "},{", output)
    messages = json.loads(f"[{joined}]")
    text = "".join(message.get("text", "") for message in messages)
    assert text == expected_text(engine, 64)


async def test_buf_shows_an_error_with_its_details(router, checkout):
    method = f"http://{router.address}/pagestream.router.v1.RouterService/Generate"
    command = (str(Path(sys.executable).parent / "buf"), "curl", "--protocol", "grpc")
    fields = '{"text": "a", "samplingParams": {"topP": 1.1}}'
    code, _, errors = await run_command(
        (*command, "--http2-prior-knowledge", "-d", fields, method), checkout
    )

    assert code != 0
    shown = json.loads(errors)
    assert "top_p is 1.1," in shown["message"]
    [detail] = shown["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"
    info = ErrorInfo.FromString(base64.b64decode(detail["value"] + "=="))
    assert (info.reason, info.metadata["value"]) == ("BAD_SAMPLING_PARAMS", "1.1")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["C++", "Java"])
async def test_client_of_generated_code_prints_the_whole_answer(engine, router, checkout, language):
    code, output, errors = await run_section(language, router.address, checkout)

    assert (code, errors) == (0, "")
    assert output == expected_text(engine) + "\n"
