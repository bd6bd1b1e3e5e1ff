"""The demo's model is the same everywhere, complete or absent, and made only when needed."""

import pytest
import torch
import transformers
from safetensors import safe_open

from examples.demo import model
from examples.demo.model import ensure_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "model"
    assert ensure_model(path)
    return path


def test_model_is_equal_each_time_it_is_made(folder, tmp_path):
    again = tmp_path / "model"
    ensure_model(again)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in again.iterdir()} == names
    assert "tokenizer.json" in names
    for name in names:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_model_is_kept_while_the_text_is_the_same_and_made_again_when_it_is_not(
    folder, monkeypatch
):
    assert not ensure_model(folder)
    monkeypatch.setattr(model, "_TEXT_PATTERNS", ("LICENSE",))
    assert ensure_model(folder)
    monkeypatch.undo()
    assert ensure_model(folder)


def test_interrupted_creation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_write_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_transformers_loads_every_tensor_and_none_is_missing(folder):
    loaded, report = transformers.Qwen3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        written = file.get_tensor("lm_head.weight")
    assert written.dtype == torch.bfloat16
    assert written.float().std().item() == pytest.approx(model.INITIALIZER_RANGE, rel=0.01)
    assert torch.equal(loaded.lm_head.weight, written.float())


def test_chat_template_lays_out_turns_of_single_special_tokens(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "héllo 🙂"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nhéllo 🙂<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text).input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids) == text
