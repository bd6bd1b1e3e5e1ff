"""Programs that use several ranks in-process and end otherwise than by closing them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SECONDS = 90

UNGUARDED = """
import sys
from engine_service.llm import LLM
LLM(sys.argv[1], device="cpu", cpu_threads=1, tensor_parallel_size=2, num_blocks=20)
"""
NOT_CLOSED = """
import sys
from multiprocessing import get_context
from engine_service.llm import LLM, SamplingParams

def use(folder):
    llm = LLM(folder, device="cpu", cpu_threads=1, tensor_parallel_size=2, num_blocks=20)
    print(llm.generate([[1, 2]], SamplingParams(max_tokens=3), use_tqdm=False)[0].token_ids)
    raise KeyError("the caller's own")

if __name__ == "__main__":
    process = get_context("fork").Process(target=use, args=(sys.argv[1],))
    process.start()
    process.join()
    print("exit code", process.exitcode)
    use(sys.argv[1])
"""
DROPPED = """
import sys
from engine_service.llm import LLM

if __name__ == "__main__":
    llm = LLM(sys.argv[1], device="cpu", cpu_threads=1, tensor_parallel_size=2, num_blocks=20)
    [process] = [peer.process for peer in llm._core._executor._peers._peers]
    del llm
    print("is alive", process.is_alive())
"""


def run(script, tmp_path, *arguments):
    path = tmp_path / "program.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.mark.slow
def test_program_without_a_main_guard_is_told_and_ends(tiny_model, tmp_path):
    done = run(UNGUARDED, tmp_path, tiny_model.folder)

    assert done.returncode == 1
    assert "StartupError: rank 1: its process ended with exit code 1" in done.stderr
    assert "if __name__ == '__main__'" in done.stderr


@pytest.mark.slow
def test_process_that_fails_with_open_ranks_ends(tiny_model, tmp_path):
    done = run(NOT_CLOSED, tmp_path, tiny_model.folder)

    assert "exit code 1\n" in done.stdout
    assert done.returncode == 1
    assert done.stderr.count("the caller's own") >= 2


@pytest.mark.slow
def test_ranks_of_a_dropped_model_end(tiny_model, tmp_path):
    done = run(DROPPED, tmp_path, tiny_model.folder)

    assert done.stdout == "is alive False\n", done.stderr
