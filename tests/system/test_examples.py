"""The clients of examples/ print, in full and in order, what an engine generated."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import tokenizers

from examples.demo.services import Service, Services
from tests.fakes import fake_engine, small_tokenizer
from tests.fakes.command import run_command
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig, expected_tokens

ROOT = Path(__file__).parents[2]
QUESTION = "introduce yourself"
SEED = 7
NUM_TOKENS = 256


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


def expected_text(engine: FakeEngine) -> str:
    """Returns the text of what the engine generated for the one request that it got."""
    (submission,) = engine.submissions
    prompt = list(submission.request.prompt_token_ids)
    tokenizer = tokenizers.Tokenizer.from_file(str(engine.config.tokenizer / "tokenizer.json"))
    assert QUESTION in tokenizer.decode(prompt)
    tokens = expected_tokens(prompt, NUM_TOKENS, seed=SEED, config=engine.config)
    return tokenizer.decode(tokens)


async def test_python_client_prints_the_whole_answer(engine: FakeEngine, router: Service):
    command = (sys.executable, "examples/generate.py", router.address, QUESTION)
    code, output, errors = await run_command(command, ROOT)
    assert (code, errors) == (0, "")
    assert output == expected_text(engine) + "\n"


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory):
    """A copy of the Node example with its packages installed, beside the protos."""
    if shutil.which("npm") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("npm is missing")
        pytest.skip("npm is missing: the Node example cannot be installed")
    root = tmp_path_factory.mktemp("node")
    (root / "protos").symlink_to(ROOT / "protos")
    folder = root / "examples"
    folder.mkdir()
    for name in ("generate.mjs", "package.json", "package-lock.json"):
        shutil.copy(ROOT / "examples" / name, folder / name)
    return folder


async def test_node_client_prints_the_whole_answer(engine, router, node_folder):
    command = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    code, _, errors = await run_command(command, node_folder)
    assert code == 0, errors
    code, output, errors = await run_command(
        ("node", "generate.mjs", router.address, QUESTION), node_folder
    )
    assert (code, errors) == (0, "")
    assert output == expected_text(engine) + "\n"
    # Nobody listens on port 1: the client says so and fails, rather than printing nothing.
    code, output, errors = await run_command(
        ("node", "generate.mjs", "127.0.0.1:1", QUESTION), node_folder
    )
    assert code == 1
    assert errors.startswith("UNAVAILABLE: ")
