r"""Trains the demo model from nothing, in under 8 minutes on one H200.

    python -m demo_model.train FOLDER

A smaller one on a CPU, which learns how answers look but little else:

    python -m demo_model.train FOLDER --device cpu --workers 1 --layers 2 --steps 500 \
        --rows 8 --row-size 512

Equal options give equal bytes on one kind of GPU with one version of PyTorch.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

# So that cuBLAS adds up in the same order each time; it reads this when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The processes that make batches are parallel enough.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils.data import DataLoader

from demo_model.batches import Batch, Batches
from demo_model.conversation import render
from demo_model.generator import conversations
from demo_model.model import RMS_NORM_EPS, Mask, Qwen3, Shape
from demo_model.tokenizer import (
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    save_tokenizer,
    train_tokenizer,
    write_json,
)

_NUM_TOKENIZER_CONVERSATIONS = 20_000
_LEARNING_RATE = 3e-3
_WARM_UP_SHARE = 0.03
_WEIGHT_DECAY = 0.1
_MAX_GRADIENT_NORM = 1.0
_REPORT_STEPS = 200
_MIN_ROW_SIZE = 256
"""Most conversations fit; a row that holds none would never be filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to train and on what.

    Attributes:
        seed: Of the weights and of the conversations.
        device: "cuda" or "cpu".
        num_workers: Processes that make batches; 0 makes them in this one.
        num_steps: Batches to learn from.
        num_rows: Of a batch.
        row_size: Tokens; longer conversations are left out.
        shape: Of the model.
    """

    seed: int
    device: str
    num_workers: int
    num_steps: int
    num_rows: int
    row_size: int
    shape: Shape


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains as the arguments say and writes a Hugging Face folder."""
    folder, settings = _parse(arguments)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    texts = (render(one.messages) for one in conversations(f"tokenizer-{settings.seed}"))
    tokenizer = train_tokenizer(islice(texts, _NUM_TOKENIZER_CONVERSATIONS))
    save_tokenizer(tokenizer, folder)
    save_model(train(tokenizer, settings), settings.shape, folder)
    seconds = time.monotonic() - started
    print(f"{folder} is complete after {seconds:.0f} s, including the tokenizer and start-up")


def _parse(arguments: Sequence[str] | None) -> tuple[Path, Settings]:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m demo_model.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add_number(flag: str, default: int, help_text: str, least: int = 1) -> None:
        def integer(text: str) -> int:
            if (value := int(text)) < least:
                raise argparse.ArgumentTypeError(f"{value} is less than the minimum of {least}")
            return value

        text = f"{help_text} (default: {default})"
        parser.add_argument(flag, type=integer, default=default, help=text)

    parser.add_argument("folder", type=Path, help="folder to which the model is written")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s"
    )
    add_number("--seed", 0, "seed of the weights and the conversations", least=0)
    add_number("--workers", 14, "processes that generate batches", least=0)
    add_number("--steps", 4000, "training steps, of one batch each")
    add_number("--rows", 32, "rows per batch")
    add_number("--row-size", MAX_MODEL_LEN, "tokens per row", least=_MIN_ROW_SIZE)
    add_number("--layers", 7, "layers of the model")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no CUDA GPU; try --device cpu")
    settings = Settings(
        seed=given.seed,
        device=given.device,
        num_workers=given.workers,
        num_steps=given.steps,
        num_rows=given.rows,
        row_size=given.row_size,
        shape=Shape(vocab_size=VOCAB_SIZE, num_layers=given.layers),
    )
    return given.folder, settings


def train(tokenizer: Tokenizer, settings: Settings) -> Qwen3:
    """Trains a model from random weights and returns it."""
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True)
    # It costs time, and nothing here reads memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    is_cuda = settings.device == "cuda"
    model = Qwen3(settings.shape).to(settings.device)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    optimizers = _optimizers(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, settings))
        for optimizer in optimizers
    ]
    loss_of = torch.compile(model) if is_cuda else model
    started = time.monotonic()
    for step, batch in enumerate(_batches(tokenizer, settings)):
        with torch.autocast(settings.device, torch.bfloat16, enabled=is_cuda):
            loss = loss_of(
                batch.token_ids, batch.targets.long(), batch.positions, _mask(batch.documents)
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if step % _REPORT_STEPS == 0 or step == settings.num_steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step:,}: loss {loss.item():.4f}, {seconds:.0f} s", flush=True)
    return model


def _optimizers(model: Qwen3) -> list[torch.optim.Optimizer]:
    """Returns Muon for the matrices of the layers, and AdamW for the embedding and the gains.

    Muon (https://kellerjordan.github.io/posts/muon/) needs half of AdamW's steps here.
    """
    layers = model.model.layers
    matrices = [parameter for parameter in layers.parameters() if parameter.ndim == 2]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [model.model.embed_tokens.weight, *gains],
        lr=_LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    return [muon, adamw]


def _schedule(step: int, settings: Settings) -> float:
    """Returns the share of the learning rate: up from 0, then straight down to 0."""
    progress = (step + 1) / (settings.num_steps + 1)
    return min(progress / _WARM_UP_SHARE, (1 - progress) / (1 - _WARM_UP_SHARE))


def _batches(tokenizer: Tokenizer, settings: Settings) -> Iterator[Batch]:
    batches = Batches(
        tokenizer,
        seed=settings.seed,
        num_steps=settings.num_steps,
        num_rows=settings.num_rows,
        row_size=settings.row_size,
    )
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        num_workers=settings.num_workers,
        # Else each copy would wait for the GPU, and the GPU then for the next step's kernels.
        pin_memory=settings.device == "cuda",
    )
    for batch in loader:
        yield batch.to(settings.device)


def _mask(documents: Tensor) -> Mask:
    """Returns the mask that lets each token of [num_rows, row_size] see its own conversation."""
    num_rows, row_size = documents.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    if documents.is_cuda:
        return _make_block_mask()(sees, num_rows, None, row_size, row_size, documents.device)
    index = torch.arange(row_size)
    is_own = documents[:, None, :, None] == documents[:, None, None, :]
    return is_own & (index[:, None] >= index)


@cache
def _make_block_mask() -> Callable[..., BlockMask]:
    # Compiled, it does not lay out [num_rows, row_size, row_size] in memory.
    return torch.compile(create_block_mask)


def save_model(model: Qwen3, shape: Shape, folder: Path) -> None:
    """Writes model.safetensors in bfloat16 and config.json."""
    weights = {name: value.to("cpu", torch.bfloat16) for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": shape.rope_theta,  # for transformers 4, which reads nothing of the next
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    write_json(folder / "config.json", config)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
