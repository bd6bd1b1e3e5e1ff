"""The model's own sampling parameters: used where they are right, named where they are not."""

import json

import pytest

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.errors import StartupError
from engine_service.models.generation_config import read_default_sampling_params
from engine_service.worker.executor import start_executor
from protos.wire.sampling_params import SamplingParams, with_defaults

QWEN3 = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}


def read(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    return read_default_sampling_params(folder)


def test_parameters_of_qwen3_are_its_authors(tmp_path):
    expected = SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
    assert read(tmp_path, QWEN3) == expected


def test_greedy_decoding_of_transformers_does_not_matter(tmp_path):
    values = {"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.05, "min_p": 0}
    expected = SamplingParams(temperature=0.7, repetition_penalty=1.05, min_p=0)
    assert read(tmp_path, values) == expected


def test_model_without_the_file_or_with_nothing_in_it_has_no_defaults(tmp_path):
    assert read_default_sampling_params(tmp_path) == SamplingParams()
    assert read(tmp_path, {"temperature": None, "max_new_tokens": 5}) == SamplingParams()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", "0.6", ['value="0.6"', "a number"]),
        ("temperature", True, ["value=true", "a number"]),
        ("temperature", -1, ["value=-1", "0 to 100"]),
        ("temperature", 10**400, ["value=1000", "0 to 100"]),
        ("top_k", 20.5, ["value=20.5", "the whole numbers -1 to"]),
        ("top_k", [20], ["value=[20]", "a number"]),
        ("top_p", 1.5, ["value=1.5", "0 to 1"]),
        ("min_p", {"a": 1}, ["a number"]),
        ("repetition_penalty", 0, ["value=0", "0.01 to 100"]),
    ],
)
def test_bad_value_is_logged_by_name_and_bound_and_ignored(tmp_path, caplog, field, value, words):
    found = read(tmp_path, QWEN3 | {field: value})

    expected = SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
    assert getattr(found, field) is None
    assert with_defaults(found, expected) == expected
    [line] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "generation_config.json" in line
    assert f"field={field}" in line
    for word in words:
        assert word in line


def test_number_beyond_floats_is_ignored(tmp_path, caplog):
    assert read(tmp_path, '{"temperature": 1e999}') == SamplingParams()
    assert "field=temperature" in caplog.text


def test_broken_file_is_refused(tmp_path):
    with pytest.raises(StartupError, match="not valid JSON"):
        read(tmp_path, "{")


def test_values_of_a_request_win_even_if_they_are_neutral():
    defaults = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1)
    asked = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, max_tokens=3)
    expected = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.1, max_tokens=3)
    assert with_defaults(asked, defaults) == expected
    assert with_defaults(asked, SamplingParams()) is asked


@pytest.mark.parametrize("source", ["auto", "none"])
def test_engine_reports_them_unless_they_are_switched_off(tmp_path, source):
    tiny = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 64,
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(tiny))
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    options = ModelOptions(
        model=str(tmp_path), load_format="dummy", device="cpu", generation_config=source
    )
    executor, info = start_executor(
        options, CacheOptions(num_blocks=4), SchedulerOptions(max_logprobs=7, max_num_seqs=2)
    )
    executor.close()

    expected = SamplingParams(temperature=0.6, top_k=20) if source == "auto" else SamplingParams()
    assert info.default_sampling_params == expected
    assert info.max_logprobs == 7
