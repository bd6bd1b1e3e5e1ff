"""A Hugging Face model folder: which files it holds, what identifies them. Needs no torch."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import xxhash

from engine_service.errors import StartupError
from engine_service.models.config import read_json
from engine_service.models.tensor_file import read_tensor_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_CONFIG_FILES = ("config.json", "generation_config.json")
_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
# Fields of config.json that say nothing about the tokens that come out.
_IRRELEVANT_FIELDS = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
)
_SAMPLES_PER_TENSOR = 4
_SAMPLE_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The files of one model, all in one folder."""

    folder: Path
    weights_files: tuple[Path, ...]
    """The safetensors files, sorted by name; empty when only random weights are wanted."""

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer and chat template files that the folder holds."""
        paths = (self.folder / name for name in TOKENIZER_FILES)
        return tuple(path for path in paths if path.is_file())

    def read_config(self) -> dict[str, object]:
        """Reads config.json."""
        return read_json(self.folder / "config.json")

    def read_eos_token_ids(self) -> frozenset[int]:
        """Reads the IDs that end a text: of generation_config.json, else of config.json."""
        for name in reversed(_CONFIG_FILES):
            path = self.folder / name
            if not path.is_file():
                continue
            value = read_json(path).get("eos_token_id")
            if value is None:
                continue
            token_ids = value if isinstance(value, list) else [value]
            if all(isinstance(token_id, int) and token_id >= 0 for token_id in token_ids):
                return frozenset(token_ids)
            raise StartupError(
                f"{path}: eos_token_id is {json.dumps(value)}; needed is a token ID or a list"
            )
        return frozenset()


def resolve_checkpoint(model: str, *, with_weights: bool = True) -> Checkpoint:
    """Finds a model's files, from the hub if need be.

    Args:
        model: A folder, or a hub ID such as `Qwen/Qwen3-0.6B`.
        with_weights: Whether the safetensors files are needed.

    Raises:
        StartupError: There is no such model, or a file of it is missing.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _download(model, with_weights=with_weights)
    if not (folder / "config.json").is_file():
        raise StartupError(f"{folder}: holds no config.json, so it is no Hugging Face model folder")
    weights_files = _weights_files(folder) if with_weights else ()
    return Checkpoint(folder=folder, weights_files=weights_files)


def _download(model: str, *, with_weights: bool) -> Path:
    patterns = [*_CONFIG_FILES, *TOKENIZER_FILES]
    if with_weights:
        patterns += [_INDEX_FILE, "*.safetensors"]
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
    except huggingface_hub.errors.HFValidationError as error:
        raise StartupError(
            f"model {model!r}: there is no such folder, nor can it be a hub ID"
        ) from error
    except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise StartupError(
            f"model {model!r}: there is no such folder, and the hub does not give it: {reason}"
        ) from error


def _weights_files(folder: Path) -> tuple[Path, ...]:
    index = folder / _INDEX_FILE
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise StartupError(f"{index}: holds no weight_map")
        files = tuple(folder / str(name) for name in sorted(set(weight_map.values())))
    else:
        files = (folder / _SINGLE_FILE,)
    for path in files:
        if not path.is_file():
            raise StartupError(f"{path}: is missing; weights are read from safetensors files only")
    return files


def fingerprint(checkpoint: Checkpoint, *, dtype: str, load_format: str, seed: int) -> str:
    """Identifies what a model computes, whatever folder it lies in.

    Covers config.json, the dtype it runs in and, of each weights file, name, size, header and
    evenly spaced samples of every tensor: milliseconds, yet any fine-tune that touches a whole
    tensor differs. Random weights are covered by their seed instead.

    Args:
        checkpoint: The model's files.
        dtype: Name of the dtype in which the model runs.
        load_format: `auto` or `dummy`, as in `ModelOptions`.
        seed: Seed of random weights.

    Returns:
        32 hexadecimal digits (xxh3-128).

    Raises:
        StartupError: A weights file is not a whole safetensors file.
    """
    digest = xxhash.xxh3_128()
    config = {
        name: value
        for name, value in checkpoint.read_config().items()
        if name not in _IRRELEVANT_FIELDS
    }
    facts: dict[str, object] = {"config": config, "dtype": dtype, "load_format": load_format}
    if load_format == "dummy":
        facts["seed"] = seed
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for path in checkpoint.weights_files:
        for piece in _identifying_pieces(path):
            digest.update(struct.pack("<Q", len(piece)))
            digest.update(piece)
    return str(digest.hexdigest())


def _identifying_pieces(path: Path) -> Iterator[bytes]:
    """Yields a safetensors file's name, size, header and samples of each tensor."""
    content = read_tensor_file(path)
    yield path.name.encode()
    yield struct.pack("<Q", path.stat().st_size)
    yield content.header
    with path.open("rb") as file:
        for tensor in content.tensors.values():
            step = max((tensor.end - tensor.begin) // _SAMPLES_PER_TENSOR, 1)
            for offset in range(tensor.begin, tensor.end, step):
                file.seek(offset)
                yield file.read(min(_SAMPLE_BYTES, tensor.end - offset))
