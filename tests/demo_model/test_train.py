"""Training makes a Qwen3 as transformers knows it, and the same one again."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from demo_model import train
from demo_model.batches import Batches
from demo_model.conversation import TURN_END
from demo_model.model import IGNORED, Qwen3, Shape
from examples.demo.model import CHECKPOINT

SMALL = ["--device", "cpu", "--layers", "1", "--steps", "3", "--rows", "2", "--row-size", "512"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "model"
    with torch.random.fork_rng():
        train.main([str(path), "--workers", "0", *SMALL])
    torch.use_deterministic_algorithms(False)
    return path


@pytest.fixture(scope="module")
def batches():
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    return Batches(tokenizer, seed=0, num_steps=2, num_rows=4, row_size=1024)


def test_same_bytes_come_out_whoever_makes_the_batches(folder, tmp_path, monkeypatch):
    # That its training gives the same bytes too, the committed tokenizer shows.
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    monkeypatch.setattr(train, "train_tokenizer", lambda texts: tokenizer)
    train.main([str(tmp_path), "--workers", "1", *SMALL])
    torch.use_deterministic_algorithms(False)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in CHECKPOINT.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_committed_tokenizer_is_that_of_today_s_conversations(folder):
    """A change of the conversations needs a new model: train it and commit both."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (CHECKPOINT / name).read_bytes(), name


def test_transformers_loads_every_tensor_and_none_is_missing(folder):
    _, report = transformers.Qwen3ForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report


def test_loss_of_packed_rows_is_that_of_transformers_one_conversation_at_a_time(folder, batches):
    reference = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = Qwen3(Shape(vocab_size=2048, num_layers=1))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    batch = batches[0]
    mask = train._mask(batch.documents)
    loss = model(batch.token_ids, batch.targets.long(), batch.positions, mask)
    losses = []
    for row, documents in enumerate(batch.documents):
        for number in documents.unique():
            own = documents == number
            if (batch.targets[row, own] == IGNORED).all():
                continue  # behind the last conversation
            with torch.no_grad():
                logits = reference(batch.token_ids[row, own][None].long()).logits[0]
            targets = batch.targets[row, own].long()
            losses.append(F.cross_entropy(logits, targets, reduction="none")[targets != IGNORED])
    assert len(losses) > 10
    assert loss.item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_answers_are_learnt_to_their_end_and_nothing_else(batches):
    decode = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).decode
    batch = batches[0]
    for ids, targets in zip(batch.token_ids, batch.targets, strict=True):
        learnt = targets != IGNORED
        # A target is the token behind it.
        assert torch.equal(targets[:-1][learnt[:-1]], ids[1:][learnt[:-1]])
        text = decode(ids.tolist(), skip_special_tokens=False)
        answers = [turn.split(TURN_END)[0] for turn in text.split("<|im_start|>assistant\n")[1:]]
        expected = "".join(answer + TURN_END for answer in answers)
        assert decode(targets[learnt].tolist(), skip_special_tokens=False) == expected


def test_batches_depend_on_the_step_alone(batches):
    assert torch.equal(batches[1].token_ids, batches[1].token_ids)
    assert not torch.equal(batches[0].token_ids, batches[1].token_ids)
    with pytest.raises(IndexError):
        batches[2]


def test_rows_are_nearly_full(batches):
    assert (batches[0].positions > 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("option", "least"), [("--steps", 1), ("--rows", 1), ("--row-size", 256), ("--layers", 1)]
)
def test_count_too_small_is_refused_by_name(option, least, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["folder", option, str(least - 1)])
    assert f"{option}: {least - 1} is less than the minimum of {least}" in capsys.readouterr().err


def test_missing_gpu_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        train.main([str(tmp_path / "model")])
    assert "--device is cuda, but torch finds no CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
