import os
import shlex

import pytest

from engine_service.errors import StartupError
from engine_service.models.checkpoint import Checkpoint
from engine_service.models.tokenizer_model import refuse_unconverted

SENTENCEPIECE, TIKTOKEN = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", b"IQ== 0\nIg== 1\n"


def files_of(folder, **contents):
    for name, content in contents.items():
        (folder / name.replace("_json", ".json").replace("_model", ".model")).write_bytes(content)
    return Checkpoint(folder=folder, weights_files=()).tokenizer_files


@pytest.mark.parametrize(
    "names", [(), ("tokenizer_json",), ("tokenizer_json", "tekken_json"), ("vocab_json",)]
)
def test_folder_with_a_usable_tokenizer_or_none_is_served(tmp_path, names):
    files_of(tmp_path, **dict.fromkeys(names, b"{}"))

    if names:
        files_of(tmp_path, tokenizer_model=SENTENCEPIECE)
    refuse_unconverted(tmp_path)


def test_sentencepiece_alone_is_refused_with_the_command_that_converts_it(tmp_path):
    folder = tmp_path / "my model's; $(folder)"
    folder.mkdir()

    with pytest.raises(StartupError) as refusal:
        files_of(folder, tokenizer_model=SENTENCEPIECE, tokenizer_config_json=b"{}")

    text = str(refusal.value)
    assert text.startswith(f"{folder} has tokenizer.model but no tokenizer.json; make one: pip ")
    assert "\n" not in text
    program, argument = shlex.split(text.partition(" && python -c ")[2])
    assert argument == str(folder)
    compile(program, "command", "exec")


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"tokenizer_model": SENTENCEPIECE}, "provide, or its tokenizer_config.json, with which"),
        ({"tokenizer_model": TIKTOKEN, "tokenizer_config_json": b"{}"}, "authors provide$"),
        ({"tokenizer_model": b""}, "authors provide$"),
        ({"tekken_json": b"{}"}, "has tekken.json but no tokenizer.json; add the tokenizer.json"),
    ],
)
def test_what_cannot_be_converted_faithfully_is_refused(tmp_path, files, advice):
    with pytest.raises(StartupError, match=advice):
        files_of(tmp_path, **files)


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.model")

    with pytest.raises(StartupError, match="is not a regular file"):
        refuse_unconverted(tmp_path)
