import logging
import os
import shutil
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from engine_service.errors import StartupError
from engine_service.layers.weight_slot import WeightSlot
from engine_service.models import tensor_reader
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.models.config import parse_config
from engine_service.models.dtypes import READABLE, STORED
from engine_service.models.loading import build_model, check_weights, fill_randomly, load_weights
from tests.engine_service.tiny_models import SHAPES, make_model, tensors_of

CPU = torch.device("cpu")


def load(folder, dtype=torch.float32, device=CPU):
    checkpoint = resolve_checkpoint(str(folder))
    model = build_model(parse_config(checkpoint.read_config()), 64, dtype, device)
    for target in tensors_of(model).values():
        target.fill_(torch.nan)
    load_weights(model, checkpoint)
    return model


def digest(folder):
    checkpoint = resolve_checkpoint(str(folder))
    model = build_model(parse_config(checkpoint.read_config()), 64, torch.float32, CPU)
    return load_weights(model, checkpoint)


def build_random(folder, seed, device=CPU, std=0.1):
    config = parse_config(resolve_checkpoint(str(folder), with_weights=False).read_config())
    model = build_model(config, 64, torch.float32, device)
    fill_randomly(model, seed, std)
    return tensors_of(model)


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_model.folder, tmp_path / "copy")


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("max_shard_size", ["1GB", "50KB"], ids=["single", "sharded"])
def test_every_tensor_arrives_in_its_place(tmp_path, shape, max_shard_size):
    tiny = make_model(tmp_path / "model", shape, max_shard_size=max_shard_size)
    expected = tiny.reference.state_dict()

    loaded = tensors_of(load(tiny.folder))

    assert set(loaded) == set(expected) - ({"lm_head.weight"} if shape.is_tied else set())
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_all_parameters_are_covered_by_the_checkpoint(tiny_model):
    model = load(tiny_model.folder)

    assert not any(parameter.isnan().any() for parameter in model.parameters())


def test_values_are_converted_to_the_dtype_of_the_model(tiny_model):
    loaded = tensors_of(load(tiny_model.folder, torch.bfloat16))

    for name, tensor in tiny_model.reference.state_dict().items():
        assert loaded[name].dtype == torch.bfloat16
        assert torch.equal(loaded[name], tensor.bfloat16())


def test_missing_tensor_is_named(folder):
    name = "model.layers.1.self_attn.k_proj.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))

    with pytest.raises(StartupError, match=r"k_proj\.weight of shape \[32, 64\] is missing"):
        load(folder)


def test_missing_head_of_an_untied_model_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))

    with pytest.raises(StartupError, match=r"lm_head\.weight of shape \[300, 64\] is missing"):
        load(folder)


def test_misshapen_tensor_is_named_with_both_shapes(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(64, 128)}))

    with pytest.raises(StartupError) as refusal:
        load(folder)

    message = str(refusal.value)
    assert str(folder / "model.safetensors") in message
    assert f"{name} has shape [64, 128], but config.json requires [128, 64]" in message


def test_unexpected_tensor_is_named(folder):
    name = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(64)}))

    with pytest.raises(StartupError, match=r"q_proj\.bias is not part of the model"):
        load(folder)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"language_model.{name}",
        lambda name: name.replace("model.", "model.language_model."),
        lambda name: name.removeprefix("model."),
    ],
    ids=["language_model.", "model.language_model.", "without model."],
)
def test_names_may_begin_otherwise(folder, renamed):
    expected = digest(folder)

    def rename(tensors):
        for name in list(tensors):
            tensors[renamed(name)] = tensors.pop(name)

    change_tensors(folder, rename)

    assert digest(folder) == expected


def test_tensors_of_other_parts_are_left_out_and_logged(folder, caplog):
    expected = digest(folder)
    others = {"vision_tower.layers.0.weight": torch.ones(2), "mm_projector.bias": torch.ones(1)}
    change_tensors(folder, lambda tensors: tensors.update(others))
    caplog.set_level(logging.INFO)

    assert digest(folder) == expected

    assert "weights unused tensors=2 first=mm_projector.bias" in caplog.text


def test_two_tensors_for_one_place_are_refused(folder):
    change_tensors(folder, lambda tensors: tensors.update({"norm.weight": torch.ones(64)}))

    with pytest.raises(StartupError, match=r"tensor (model\.)?norm\.weight is there twice: so is"):
        load(folder)


def test_tensor_of_an_unsupported_type_is_named(folder):
    name = "model.norm.weight"
    quantised = torch.ones(64, dtype=torch.float8_e4m3fn)
    change_tensors(folder, lambda tensors: tensors.update({name: quantised}))

    with pytest.raises(StartupError, match=r"model\.norm\.weight is stored as F8_E4M3"):
        load(folder)


@pytest.fixture
def tied_folder(tmp_path):
    """The folder of a tied model, to spoil."""
    return make_model(tmp_path / "tied", SHAPES[0]).folder


def embedding_of(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


def test_tied_head_that_is_stored_once_more_is_the_same_matrix(tied_folder):
    embedding = embedding_of(tied_folder)
    change_tensors(tied_folder, lambda tensors: tensors.update({"lm_head.weight": embedding + 0}))

    model = load(tied_folder)

    assert model.lm_head is model.embed_tokens
    assert torch.equal(model.lm_head.weight, embedding)


def test_tied_matrix_may_be_stored_as_the_head(tied_folder):
    embedding = embedding_of(tied_folder)

    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    change_tensors(tied_folder, rename)

    model = load(tied_folder)

    assert model.lm_head is model.embed_tokens
    assert torch.equal(model.lm_head.weight, embedding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_head_that_is_another_matrix_is_refused(tied_folder, dtype):
    head = embedding_of(tied_folder)
    head[299, 63] += 1
    change_tensors(tied_folder, lambda tensors: tensors.update({"lm_head.weight": head}))

    with pytest.raises(StartupError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load(tied_folder, dtype)


def test_tied_head_of_another_shape_is_refused(tied_folder):
    change_tensors(
        tied_folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(299, 64)})
    )

    with pytest.raises(StartupError, match=r"lm_head\.weight has shape \[299, 64\], but config"):
        load(tied_folder)


def test_tied_model_without_either_matrix_is_refused(tied_folder):
    change_tensors(tied_folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))

    with pytest.raises(StartupError, match=r"embed_tokens\.weight of shape \[300, 64\] is missing"):
        load(tied_folder)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(folder, value, stored, device):
    name = "model.layers.2.self_attn.v_proj.weight"

    def spoil(tensors):
        tensors.update({key: tensor.to(stored) for key, tensor in tensors.items()})
        tensors[name][31, 63] = value

    change_tensors(folder, spoil)

    found = "NaN" if value != value else "infinite values"
    with pytest.raises(StartupError, match=rf"tensor {name}, stored as \w+, contains {found}"):
        load(folder, stored, torch.device(device))


@pytest.mark.parametrize(
    ("dtype", "value", "limit"),
    [(torch.float16, 65520.0, "6.55e+04"), (torch.bfloat16, 3.4e38, "3.39e+38")],
)
def test_weights_beyond_the_range_of_the_model_s_dtype_are_named(folder, dtype, value, limit):
    name = "model.norm.weight"
    change_tensors(folder, lambda tensors: tensors[name].fill_(value))

    with pytest.raises(StartupError) as refusal:
        load(folder, dtype)

    dtype_name = str(dtype).removeprefix("torch.")
    assert str(refusal.value).endswith(
        f"tensor {name}, stored as F32, contains infinite values, "
        f"or values above {limit}, the maximum of {dtype_name}"
    )


def test_files_are_compared_with_the_config_before_anything_is_allocated(folder):
    checkpoint = resolve_checkpoint(str(folder))
    values = checkpoint.read_config() | {"hidden_size": 1 << 18, "num_hidden_layers": 512}
    values["layer_types"] = None

    with pytest.raises(StartupError, match=r"has shape \[300, 64\], but config\.json requires"):
        check_weights(parse_config(values), checkpoint)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sound_files_pass_the_comparison(tmp_path, shape):
    checkpoint = resolve_checkpoint(str(make_model(tmp_path / "model", shape).folder))

    check_weights(parse_config(checkpoint.read_config()), checkpoint)


@pytest.mark.parametrize("dtype", STORED.values(), ids=lambda dtype: dtype.stored_name)
def test_types_are_as_wide_as_the_format_and_torch_say(dtype):
    if dtype.stored_name in safetensors.torch._TYPES:
        assert safetensors.torch._TYPES[dtype.stored_name].itemsize * 8 == dtype.num_bits
    if dtype.name is not None:
        assert READABLE[dtype.name] is dtype
        assert dtype.torch_dtype == safetensors.torch._TYPES[dtype.stored_name]


def test_tensor_may_belong_into_columns_of_a_parameter(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_reader, "_PIECE_BYTES", 100)
    expected = torch.randn(13, 7)
    safetensors.torch.save_file({"x": expected}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = resolve_checkpoint(str(tmp_path))
    whole, parameter = torch.zeros(13, 7), torch.zeros(13, 20)
    slots = [
        WeightSlot(name="x", parameter=whole),
        WeightSlot(name="x", parameter=parameter, dim=1, offset=5, size=7),
    ]

    digests = {
        load_weights(SimpleNamespace(weight_slots=lambda slot=slot: [slot]), checkpoint)
        for slot in slots
    }

    assert torch.equal(whole, expected)
    assert torch.equal(parameter[:, 5:12], expected)
    assert not parameter[:, :5].any()
    assert not parameter[:, 12:].any()
    assert len(digests) == 1, "it is of the bytes, wherever they go"


def test_tensors_larger_than_a_piece_are_whole(tiny_model, monkeypatch):
    monkeypatch.setattr(tensor_reader, "_PIECE_BYTES", 1000)

    loaded = tensors_of(load(tiny_model.folder, torch.bfloat16))

    for name, tensor in tiny_model.reference.state_dict().items():
        assert torch.equal(loaded[name], tensor.bfloat16())


def test_file_that_shrinks_while_it_is_read_is_named(folder, monkeypatch):
    monkeypatch.setattr(tensor_reader, "_PIECE_BYTES", 1000)
    preadv = os.preadv

    def shrink_and_read(descriptor, buffers, offset):
        os.truncate(folder / "model.safetensors", 20_000)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrink_and_read)

    with pytest.raises(StartupError, match=r"model\.safetensors: .* has become shorter"):
        load(folder)


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_named(folder, kept_share):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept_share)])

    with pytest.raises(
        StartupError, match=r"model\.safetensors: is not a complete safetensors file"
    ):
        load(folder)


def test_random_weights_depend_on_seed_and_name_alone(tiny_model):
    first, again = build_random(tiny_model.folder, 1), build_random(tiny_model.folder, 1)
    other = build_random(tiny_model.folder, 2)

    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name, tensor in first.items() if tensor.dim() == 2]
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    q_projections = [first[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(2)]
    assert not torch.equal(*q_projections)


def test_random_weights_are_near_normal(tiny_model):
    values = build_random(tiny_model.folder, 3, std=0.05)["model.embed_tokens.weight"].flatten()

    # 19,200 values: the bounds are five standard errors.
    assert abs(values.mean()) < 5 * 0.05 / len(values) ** 0.5
    assert abs(values.std() / 0.05 - 1) < 5 / (2 * len(values)) ** 0.5
    assert abs((values.abs() < 0.05).float().mean() - 0.67) < 0.02
    assert len(values.unique()) > 0.9 * len(values)
    assert abs(torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1]) < 0.04


def test_norm_weights_of_a_random_model_are_one(tiny_model):
    weights = build_random(tiny_model.folder, 0)

    assert (weights["model.norm.weight"] == 1).all()
    assert (weights["model.layers.0.self_attn.q_norm.weight"] == 1).all()


@pytest.mark.gpu
def test_random_weights_are_the_same_on_cuda(tiny_model):
    on_cpu = build_random(tiny_model.folder, 5)
    on_cuda = build_random(tiny_model.folder, 5, torch.device("cuda"))

    assert all(torch.equal(on_cpu[name], on_cuda[name].cpu()) for name in on_cpu)


@pytest.mark.gpu
def test_weights_are_read_straight_to_cuda(tiny_model):
    loaded = tensors_of(load(tiny_model.folder, device=torch.device("cuda")))

    for name, tensor in tiny_model.reference.state_dict().items():
        assert loaded[name].device.type == "cuda"
        assert torch.equal(loaded[name].cpu(), tensor)


@pytest.mark.gpu
def test_work_enqueued_before_does_not_overwrite_what_is_read(tiny_model):
    checkpoint = resolve_checkpoint(str(tiny_model.folder))
    config = parse_config(checkpoint.read_config())
    model = build_model(config, 64, torch.float32, torch.device("cuda"))
    # About a second, as long as the copies' streams do not wait for it.
    torch.cuda._sleep(2_000_000_000)
    for target in tensors_of(model).values():
        target.fill_(torch.nan)

    load_weights(model, checkpoint)

    torch.cuda.synchronize()
    for name, tensor in tiny_model.reference.state_dict().items():
        assert torch.equal(tensors_of(model)[name].cpu(), tensor)
