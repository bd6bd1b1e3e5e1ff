"""The largest prompt takes little memory beside a tokenizer of full size, whatever it says."""

import json
import subprocess
import sys

import pytest

from benchmarks.router import large_tokenizer
from tests.router.text.test_text_pieces import QWEN, bytes_, sequence, split

PROGRAM = """
import json, re, sys
from functools import partial
from pathlib import Path

from router.errors import InvalidRequest
from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatMessage
from tests.router.chats import encode_chat


def megabytes(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1]) / 1000


folder, units = Path(sys.argv[1]), sys.argv[2]
tokenizer = Tokenizer.from_files({file.name: file.read_bytes() for file in folder.iterdir()})
for unit in units:
    text = unit * (4 * 1024 * 1024 // len(unit.encode()))
    message = ChatMessage(role="user", content=text)
    encode_message = partial(encode_chat, tokenizer)
    for encode, prompt in ((tokenizer.encode_text, text), (encode_message, (message,))):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = megabytes("VmRSS")
        try:
            encode(prompt, 40_960)
            error = ""
        except InvalidRequest as caught:
            error = caught.status.reason
        print(json.dumps([unit, error, megabytes("VmHWM") - before]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = large_tokenizer.save(tmp_path_factory.mktemp("large"))
    file = folder / "tokenizer.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["pre_tokenizer"] = sequence(split(QWEN), bytes_())
    file.write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("units", ["7a", pytest.param(" 😀你=", marks=pytest.mark.slow)])
def test_four_mebibytes_take_less_than_a_hundred_megabytes(folder, units):
    program = [sys.executable, "-c", PROGRAM, str(folder), units]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout

    results = [json.loads(line) for line in output.splitlines()]
    assert len(results) == 2 * len(units)
    assert all(error == "PROMPT_TOO_LONG" for _, error, _ in results), results
    assert all(megabytes < 100 for _, _, megabytes in results), results
