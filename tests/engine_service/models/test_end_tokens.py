import json
import logging

import pytest

from engine_service.errors import StartupError
from engine_service.models.end_tokens import read_eos_token_ids

VOCAB_SIZE = 300


def write(folder, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)


def token(content, token_id):
    return {"id": token_id, "content": content, "special": True}


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [(5, 6, {5}), ([5, 7], 6, {5, 7}), (None, 6, {6}), (None, [6, 8], {6, 8}), (None, None, set())],
)
def test_eos_tokens_of_generation_config_come_first(tmp_path, generation_config, config, expected):
    write(
        tmp_path,
        generation_config={"eos_token_id": generation_config},
        config={"eos_token_id": config},
    )

    assert read_eos_token_ids(tmp_path, VOCAB_SIZE) == expected


def test_eos_tokens_are_read_without_a_generation_config(tmp_path):
    write(tmp_path, config={"eos_token_id": 9})

    assert read_eos_token_ids(tmp_path, VOCAB_SIZE) == {9}


@pytest.mark.parametrize("name", ["generation_config", "config"])
@pytest.mark.parametrize(
    "value",
    [
        *("five", [5, "six"], -1, 2.5, True, [5, False], 2**40, [5, VOCAB_SIZE], {"a": 1}, [[5]]),
        *([5] * 1025, "x" * 10_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_eos_token_that_is_no_token_id_is_refused(tmp_path, name, value):
    write(tmp_path, **{"config": {}, name: {"eos_token_id": value}})

    with pytest.raises(
        StartupError, match=rf"{name}\.json: eos_token_id is .* from 0 to 299"
    ) as refusal:
        read_eos_token_ids(tmp_path, VOCAB_SIZE)

    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "files",
    [
        {
            "tokenizer_config": {"eos_token": "<|im_end|>"},
            "tokenizer": {"added_tokens": [token("<|endoftext|>", 11), token("<|im_end|>", 12)]},
        },
        {
            "tokenizer_config": {"eos_token": {"content": "<|im_end|>", "lstrip": False}},
            "tokenizer": {"added_tokens": [], "model": {"vocab": {"<|im_end|>": 12}}},
        },
        {
            "tokenizer_config": {
                "eos_token": "<|im_end|>",
                "added_tokens_decoder": {"x": {}, "12": {"content": "<|im_end|>"}, "13": None},
            },
        },
        {
            "special_tokens_map": {"eos_token": "<|im_end|>"},
            "added_tokens": {"<|im_end|>": 12},
        },
        {"tokenizer_config": {"eos_token": "<|im_end|>"}, "vocab": {"<|im_end|>": 12}},
    ],
)
def test_token_that_only_the_tokenizer_s_configuration_names_ends_a_text_too(tmp_path, files):
    write(tmp_path, config={"eos_token_id": 11}, **files)

    assert read_eos_token_ids(tmp_path, VOCAB_SIZE) == {11, 12}


def test_id_of_an_added_token_counts_rather_than_that_of_the_vocabulary(tmp_path):
    write(
        tmp_path,
        config={},
        tokenizer_config={"eos_token": "</s>"},
        tokenizer={"added_tokens": [token("</s>", 2)], "model": {"vocab": {"</s>": 3}}},
    )

    assert read_eos_token_ids(tmp_path, VOCAB_SIZE) == {2}


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"added_tokens": [token("<|im_end|>", VOCAB_SIZE)]},
        {"added_tokens": [token("<|im_end|>", 2**40)]},
        {"added_tokens": [token("<|im_end|>", "12"), token("<|im_end|>", True)]},
        {"added_tokens": [["<|im_end|>", 12], None, 12, {}]},
        {"added_tokens": {"<|im_end|>": 12}, "model": {"vocab": [["<|im_end|>", 12]]}},
        {"added_tokens": 5, "model": 5},
    ],
    ids=str,
)
def test_token_that_the_model_cannot_generate_is_told_and_passed_over(tmp_path, tokenizer, caplog):
    write(
        tmp_path,
        config={"eos_token_id": 11},
        tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": 7},
        tokenizer=tokenizer,
    )
    with caplog.at_level(logging.WARNING):
        assert read_eos_token_ids(tmp_path, VOCAB_SIZE) == {11}
    assert 'eos token unknown token="<|im_end|>"' in caplog.text


@pytest.mark.parametrize("value", [5, True, ["</s>"], {"content": 5}, {}])
def test_tokenizer_s_configuration_that_names_no_text_is_refused(tmp_path, value):
    write(tmp_path, config={}, tokenizer_config={"eos_token": value})

    with pytest.raises(StartupError, match=r"tokenizer_config\.json: eos_token is"):
        read_eos_token_ids(tmp_path, VOCAB_SIZE)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "<html>", '{"a": Infinity}', ""])
@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config"])
def test_tokenizer_file_that_is_no_object_is_refused_in_one_line(tmp_path, name, text):
    write(tmp_path, config={}, **{"tokenizer_config": {"eos_token": "</s>"}, name: text})

    with pytest.raises(StartupError, match=rf"{name}\.json: ") as refusal:
        read_eos_token_ids(tmp_path, VOCAB_SIZE)

    assert "\n" not in str(refusal.value)
