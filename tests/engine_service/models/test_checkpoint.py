import json
import shutil

import huggingface_hub
import pytest
import safetensors.torch
import torch

from engine_service.errors import StartupError
from engine_service.models.checkpoint import fingerprint, resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.loading import build_model, load_weights
from tests.engine_service.tiny_models import LINEAR_ROPE, SHAPES, make_model


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_model.folder, tmp_path / "copy")


def identify(folder, *, dtype="float32", load_format="auto", seed=0):
    """Loads the model, as its fingerprint is of what was read."""
    checkpoint = resolve_checkpoint(str(folder), with_weights=load_format == "auto")
    weights = ""
    if load_format == "auto":
        config = parse_config(checkpoint.read_config())
        model = build_model(config, 64, torch.float32, torch.device("cpu"))
        weights = load_weights(model, checkpoint)
    return fingerprint(checkpoint, dtype=dtype, load_format=load_format, seed=seed, weights=weights)


def write_shards(folder, shards, weight_map):
    """Replaces a folder's weights by these files and this map."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for name, tensors in shards.items():
        safetensors.torch.save_file(tensors, folder / name)
    if weight_map is not None:
        content = json.dumps({"weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(content)


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
    with pytest.raises(StartupError, match=r"has no config\.json"):
        resolve_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[]", b"\x00", b"", b"\xff\xfe", b"5", b'"text"', b"<html>log in</html>"),
        *(b'{"a":' * 100_000, b'{"a":' * 70 + b"1" + b"}" * 70, b"[" * 400 + b"]" * 400),
        *(b'{"rope_theta": NaN}', b'{"rope_theta": -Infinity}', b'{"a": ' + b"1" * 5000 + b"}"),
        *(b'{"a": 1, "a": 2}', b'{"a": "' + b"x" * (4 << 20) + b'"}'),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_config_that_is_no_json_object_is_refused_in_one_line(folder, content):
    (folder / "config.json").write_bytes(content)

    with pytest.raises(StartupError, match=r"config\.json") as refusal:
        resolve_checkpoint(str(folder)).read_config()

    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_config_that_leads_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")

    with pytest.raises(StartupError, match=r"is a link that leads outside the model's folder"):
        resolve_checkpoint(str(folder)).read_config()


@pytest.mark.parametrize("model", ["", "~nosuchuser/x", "x" * 5000, "\ud800"])
def test_folder_that_cannot_be_one_is_refused_in_one_line(model):
    with pytest.raises(StartupError) as refusal:
        resolve_checkpoint(model)

    assert "\n" not in str(refusal.value)


def test_home_that_nobody_has_is_told(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)

    with pytest.raises(StartupError, match=r"~/model: cannot be read: Could not determine home"):
        resolve_checkpoint("~/model")


@pytest.mark.parametrize("model", ["/nowhere/at/all", "some owner/model", "a/b/c"])
def test_name_that_is_neither_folder_nor_hub_id_is_refused_in_one_line(model):
    with pytest.raises(StartupError, match="no such folder") as refusal:
        resolve_checkpoint(model)

    assert model in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_hub_that_cannot_be_reached_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(StartupError, match=r"owner/model.*the hub does not provide it") as refusal:
        resolve_checkpoint("owner/model")

    assert "\n" not in str(refusal.value)


def test_tokenizer_files_are_those_that_exist(folder):
    for name in ("tokenizer.json", "chat_template.jinja", "notes.txt"):
        (folder / name).write_text("{}")

    files = resolve_checkpoint(str(folder)).tokenizer_files

    assert [path.name for path in files] == ["tokenizer.json", "chat_template.jinja"]


def test_fingerprint_is_of_the_content_not_of_the_place(tiny_model, folder):
    change_json(folder / "config.json", _name_or_path="elsewhere", transformers_version="4.51.0")

    assert identify(folder) == identify(tiny_model.folder)
    assert len(identify(folder)) == 32
    assert int(identify(folder), 16) >= 0


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_fingerprint_tells_a_change_of_one_value(tiny_model, folder, name):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    values = tensors[name].view(-1)
    values[len(values) // 2 - 7] *= 1.01
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
    for rope in ({"factor": 2.0}, {"factor": 4.0}):
        change_json(folder / "config.json", rope_parameters=LINEAR_ROPE | rope)
        prints.append(identify(folder))
    change_json(folder / "config.json", use_sliding_window=True, sliding_window=8)
    prints.append(identify(folder))

    assert len(set(prints)) == len(prints)


def test_bfloat16_and_float32_files_differ(tmp_path):
    single = make_model(tmp_path / "a", SHAPES[0])
    half = make_model(tmp_path / "b", SHAPES[0], dtype=torch.bfloat16)

    assert identify(single.folder) != identify(half.folder)


def test_fingerprint_is_the_same_however_the_weights_are_cut(tmp_path):
    whole = make_model(tmp_path / "a", SHAPES[0])
    cut = make_model(tmp_path / "b", SHAPES[0], max_shard_size="50KB")

    assert identify(whole.folder) == identify(cut.folder)


@pytest.fixture
def halves(folder):
    """Two shards, each with all tensors, one half of which are stale."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    names = sorted(tensors)
    early, late = names[: len(names) // 2], names[len(names) // 2 :]
    stale = {name: tensor + 1 for name, tensor in tensors.items()}
    return {
        "m-1.safetensors": {name: (tensors if name in early else stale)[name] for name in names},
        "m-2.safetensors": {name: (tensors if name in late else stale)[name] for name in names},
    }, {**dict.fromkeys(early, "m-1.safetensors"), **dict.fromkeys(late, "m-2.safetensors")}


def test_each_tensor_is_that_of_the_file_which_the_index_names(tiny_model, folder, halves):
    write_shards(folder, *halves)

    stored = resolve_checkpoint(str(folder)).stored_tensors()

    assert {name: tensor.path.name for name, tensor in stored.items()} == halves[1]
    assert identify(folder) == identify(tiny_model.folder)


def test_fingerprint_depends_on_which_copy_the_index_chooses(folder, halves):
    shards, weight_map = halves
    write_shards(folder, shards, weight_map)
    before = identify(folder)
    (folder / "model.safetensors.index.json").unlink()
    write_shards(folder, shards, weight_map | {"model.norm.weight": "m-1.safetensors"})

    assert identify(folder) != before


def test_copies_between_which_the_index_does_not_choose_are_refused(folder, halves):
    shards, weight_map = halves
    del weight_map["model.norm.weight"]
    write_shards(folder, shards, weight_map)

    with pytest.raises(
        StartupError,
        match=r"m-2\.safetensors: tensor model\.norm\.weight is also in m-1\.safetensors",
    ):
        resolve_checkpoint(str(folder)).stored_tensors()


def test_tensor_that_the_named_file_lacks_is_refused(folder, halves):
    shards, weight_map = halves
    del shards["m-2.safetensors"]["model.norm.weight"]
    write_shards(folder, shards, weight_map)

    with pytest.raises(
        StartupError, match=r"model\.norm\.weight is listed in m-2\.safetensors, but"
    ):
        resolve_checkpoint(str(folder)).stored_tensors()


def test_tensor_that_no_file_holds_is_refused(folder, halves):
    shards, weight_map = halves
    write_shards(folder, shards, weight_map | {"a": "m-1.safetensors"})

    with pytest.raises(
        StartupError, match=r"index\.json: tensor a is listed in m-1\.safetensors, but"
    ):
        resolve_checkpoint(str(folder)).stored_tensors()


def test_weights_beside_those_of_the_index_are_refused(folder):
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "other.safetensors"}})
    )

    with pytest.raises(StartupError, match=r"has two sets of weights, model\.safetensors and"):
        resolve_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "is not a JSON object"),
        ("<html>log in</html>", "is not valid JSON"),
        ("{}", "weight_map is null, must be a non-empty object"),
        ('{"weight_map": []}', r"weight_map is \[\], must be a non-empty object"),
        ('{"weight_map": {"a": 1}}', 'weight_map has 1 for "a", must be the name of a file'),
        ('{"weight_map": {"a": ["m.safetensors"]}}', r'has \["m.safetensors"\] for "a"'),
        ('{"weight_map": {"a": null}}', 'has null for "a"'),
        ('{"weight_map": {"a": ""}}', 'has "" for "a"'),
        ('{"weight_map": {"a": ".."}}', 'has ".." for "a"'),
        ('{"weight_map": {"a": "."}}', 'has "." for "a"'),
        ('{"weight_map": {"a": "../b/model.safetensors"}}', "must be the name of a file"),
        ('{"weight_map": {"a": "/etc/model.safetensors"}}', "must be the name of a file"),
        ('{"weight_map": {"a": "b/model.safetensors"}}', "must be the name of a file"),
        ('{"weight_map": {"a": "b\\u0000"}}', "must be the name of a file"),
        ('{"weight_map": {"a": "\\ud800"}}', "must be the name of a file"),
        ('{"weight_map": {"a": "' + "b" * 300 + '"}}', "must be the name of a file"),
        ('{"weight_map": {"a": "x", "a": "y"}}', '"a" appears twice in one object'),
    ],
)
def test_index_that_is_none_is_refused_in_one_line(folder, content, expected):
    (folder / "model.safetensors.index.json").write_text(content)

    with pytest.raises(StartupError, match=expected) as refusal:
        resolve_checkpoint(str(folder))

    message = str(refusal.value)
    assert message.startswith(f"{folder / 'model.safetensors.index.json'}: ")
    assert "\n" not in message
    assert len(message) < 400
