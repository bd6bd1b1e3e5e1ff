import json
import shutil

import huggingface_hub
import pytest
import safetensors.torch
import torch

from engine_service.errors import StartupError
from engine_service.models.checkpoint import fingerprint, resolve_checkpoint
from tests.engine_service.tiny_models import SHAPES, make_model


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_model.folder, tmp_path / "copy")


def identify(folder, *, dtype="float32", load_format="auto", seed=0):
    checkpoint = resolve_checkpoint(str(folder), with_weights=load_format == "auto")
    return fingerprint(checkpoint, dtype=dtype, load_format=load_format, seed=seed)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder_gives_its_single_file(folder):
    checkpoint = resolve_checkpoint(str(folder))

    assert [path.name for path in checkpoint.weights_files] == ["model.safetensors"]


def test_index_gives_all_its_files_once(tmp_path):
    model = make_model(tmp_path / "model", SHAPES[0], max_shard_size="100KB")

    files = resolve_checkpoint(str(model.folder)).weights_files

    assert len(files) > 1
    assert list(files) == sorted(model.folder.glob("*.safetensors"))


def test_missing_shard_is_named(tmp_path):
    model = make_model(tmp_path / "model", SHAPES[0], max_shard_size="100KB")
    victim = sorted(model.folder.glob("*.safetensors"))[1]
    victim.unlink()

    with pytest.raises(StartupError, match=victim.name):
        resolve_checkpoint(str(model.folder))


def test_folder_without_weights_will_do_for_random_ones(folder):
    (folder / "model.safetensors").unlink()

    with pytest.raises(StartupError, match=r"model\.safetensors: is missing"):
        resolve_checkpoint(str(folder))
    assert resolve_checkpoint(str(folder), with_weights=False).weights_files == ()


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(StartupError, match=r"holds no config\.json"):
        resolve_checkpoint(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_config_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)

    with pytest.raises(StartupError, match=r"config\.json"):
        resolve_checkpoint(str(folder)).read_config()


@pytest.mark.parametrize("model", ["/nowhere/at/all", "some owner/model", "a/b/c"])
def test_name_that_is_neither_folder_nor_hub_id_is_refused_in_one_line(model):
    with pytest.raises(StartupError, match="no such folder") as refusal:
        resolve_checkpoint(model)

    assert model in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_hub_that_cannot_be_reached_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(StartupError, match=r"owner/model.*the hub does not give it") as refusal:
        resolve_checkpoint("owner/model")

    assert "\n" not in str(refusal.value)


def test_tokenizer_files_are_those_that_exist(folder):
    for name in ("tokenizer.json", "chat_template.jinja", "notes.txt"):
        (folder / name).write_text("{}")

    files = resolve_checkpoint(str(folder)).tokenizer_files

    assert [path.name for path in files] == ["tokenizer.json", "chat_template.jinja"]


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [(5, 6, {5}), ([5, 7], 6, {5, 7}), (None, 6, {6}), (None, [6, 8], {6, 8}), (None, None, set())],
)
def test_eos_tokens_of_generation_config_come_first(folder, generation_config, config, expected):
    change_json(folder / "generation_config.json", eos_token_id=generation_config)
    change_json(folder / "config.json", eos_token_id=config)

    assert resolve_checkpoint(str(folder)).read_eos_token_ids() == expected


def test_eos_tokens_are_read_without_a_generation_config(folder):
    (folder / "generation_config.json").unlink()
    change_json(folder / "config.json", eos_token_id=9)

    assert resolve_checkpoint(str(folder)).read_eos_token_ids() == {9}


@pytest.mark.parametrize("value", ["five", [5, "six"], -1, 2.5])
def test_eos_token_that_is_no_token_id_is_refused(folder, value):
    change_json(folder / "generation_config.json", eos_token_id=value)

    with pytest.raises(StartupError, match="eos_token_id"):
        resolve_checkpoint(str(folder)).read_eos_token_ids()


def test_fingerprint_is_of_the_content_not_of_the_place(tiny_model, folder):
    change_json(folder / "config.json", _name_or_path="elsewhere", transformers_version="4.51.0")

    assert identify(folder) == identify(tiny_model.folder)
    assert len(identify(folder)) == 32
    assert int(identify(folder), 16) >= 0


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_fingerprint_tells_a_fine_tune_of_one_tensor(tiny_model, folder, name):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[name] *= 1.01
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})

    assert path.stat().st_size == (tiny_model.folder / path.name).stat().st_size
    assert identify(folder) != identify(tiny_model.folder)


def test_fingerprint_tells_what_the_tokens_depend_on(tiny_model, folder):
    change_json(folder / "config.json", rms_norm_eps=1e-5)
    prints = [
        identify(tiny_model.folder),
        identify(folder),
        identify(tiny_model.folder, dtype="bfloat16"),
        identify(tiny_model.folder, load_format="dummy"),
        identify(tiny_model.folder, load_format="dummy", seed=1),
    ]

    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("content", [b"", b"\x10\x00", b"\xff" * 64, b"\x02" + b"\x00" * 7 + b"[]"])
def test_fingerprint_of_a_broken_file_names_it(folder, content):
    (folder / "model.safetensors").write_bytes(content)

    with pytest.raises(StartupError, match=r"model\.safetensors: is not a whole safetensors file"):
        identify(folder)


def test_bfloat16_and_float32_files_differ(tmp_path):
    single = make_model(tmp_path / "a", SHAPES[0])
    half = make_model(tmp_path / "b", SHAPES[0], dtype=torch.bfloat16)

    assert identify(single.folder) != identify(half.folder)
