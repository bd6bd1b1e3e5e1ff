"""Tokens of ranks that have a GPU each, against those of a single one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine_service.grammar.model import EOS_TOKEN_IDS, TOKENIZER_JSON, VOCAB_SIZE
from tests.engine_service.tiny_models import Shape, make_model
from tests.kernels.gpu_ranks import on_gpus

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[3]
SECONDS = 200
SHAPE = Shape(num_heads=8, num_kv_heads=2, head_dim=64, is_tied=True, vocab_size=VOCAB_SIZE)
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
"""Of logprobs."""
WAYS = [
    pytest.param(
        {"num_ranks": num_ranks, "enforce_eager": steps == "eager", "sums": sums},
        id=f"{num_ranks} ranks, {steps}, {sums}",
        marks=on_gpus(num_ranks),
    )
    for num_ranks in (2, 4, 8)
    for steps in ("graphs", "eager")
    # No more than two ranks copy.
    for sums in ("kernels", "copies", "NCCL")[:: 1 if num_ranks == 2 else 2]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("ranks") / "model", SHAPE).folder
    # For grammars.
    (folder / "tokenizer.json").write_bytes(TOKENIZER_JSON)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": EOS_TOKEN_IDS}))
    return folder


def answers(results, folder, **asked):
    """Returns what the program answers, and the tokens of each rank."""
    asked |= {"folder": str(folder), "results": str(results)}
    # A process of its own: torch's symmetric memory allows only one group in one.
    subprocess.run(
        [sys.executable, "-m", "tests.engine_service.tensor_parallel.gpu_ranks", json.dumps(asked)],
        cwd=ROOT,
        check=True,
        timeout=SECONDS,
    )
    tokens = [path.read_text().splitlines() for path in results.glob("rank-*")]
    return json.loads((results / "answers").read_text()), tokens


@pytest.fixture(scope="module", params=TOLERANCES)
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def alone(folder, dtype, tmp_path_factory):
    return answers(
        tmp_path_factory.mktemp("alone"),
        folder,
        num_ranks=1,
        dtype=dtype,
        enforce_eager=False,
        sums="kernels",
    )[0]


@pytest.mark.parametrize("way", WAYS)
def test_ranks_give_the_tokens_of_a_single_one(folder, dtype, alone, tmp_path, way):
    found, tokens = answers(tmp_path, folder, dtype=dtype, **way)

    assert len(tokens) == way["num_ranks"]
    first, *others = tokens
    assert len(first) > 50
    for other in others:
        # One of them may have been ended before it could write its last step.
        for own, theirs in zip(first, other, strict=False):
            assert own == theirs
        assert abs(len(first) - len(other)) <= 2
    assert alone["num_preemptions"] > 0
    logprobs = pytest.approx(alone["prompt_logprobs"], rel=0, abs=TOLERANCES[dtype])
    assert found["prompt_logprobs"] == logprobs
    if dtype == "float32":
        del found["prompt_logprobs"]
        assert found.items() <= alone.items()
