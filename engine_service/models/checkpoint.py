"""A Hugging Face model folder: its files and its fingerprint. Needs no torch."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from engine_service.errors import StartupError
from engine_service.models import hub
from engine_service.models.end_tokens import read_eos_token_ids
from engine_service.models.generation_config import read_default_sampling_params
from engine_service.models.json_file import read_json, shown
from engine_service.models.plain_file import cannot_read, exists
from engine_service.models.tensor_file import StoredTensor, read_tensor_file
from engine_service.models.tokenizer_model import FILE_NAME as TOKENIZER_MODEL
from engine_service.models.tokenizer_model import refuse_unconverted
from protos.wire.sampling_params import SamplingParams

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
_MAX_INDEX_BYTES = 64 << 20
_OTHER_WEIGHTS = frozenset({".bin", ".ggml", ".gguf", ".onnx", ".pt", ".pth"})
# Fields of config.json that do not affect the generated tokens.
_IRRELEVANT_FIELDS = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The files of one model, all in one folder."""

    folder: Path
    weights_files: tuple[Path, ...]
    """The safetensors files, sorted by name; empty when only random weights are wanted."""
    weight_map: Mapping[str, str] = field(default_factory=dict)
    """The file of each tensor by name, from the index; empty without an index."""

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer and chat template files in the folder.

        Raises:
            StartupError: The tokenizer must be converted first.
        """
        refuse_unconverted(self.folder)
        paths = (self.folder / name for name in TOKENIZER_FILES)
        return tuple(path for path in paths if exists(path))

    def read_config(self) -> dict[str, object]:
        """Reads config.json."""
        return read_json(self.folder / "config.json")

    def read_eos_token_ids(self, vocab_size: int) -> frozenset[int]:
        """Reads the IDs that end a text, each below `vocab_size`."""
        return read_eos_token_ids(self.folder, vocab_size)

    def read_default_sampling_params(self) -> SamplingParams:
        """Reads the sampling parameters that the model's authors recommend."""
        return read_default_sampling_params(self.folder)

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """Reads the headers of the weights files and chooses one tensor per name.

        Raises:
            StartupError: A file is incomplete or contradicts the index, or two files hold a
                tensor and the index does not say which to use.
        """
        tensors: dict[str, StoredTensor] = {}
        for path in self.weights_files:
            for name, tensor in read_tensor_file(path).items():
                if self.weight_map.get(name, path.name) != path.name:
                    continue
                if name in tensors:
                    raise StartupError(
                        f"{tensor} is also in {tensors[name].path.name}, and {_INDEX_FILE} does "
                        "not say which one to use; remove one of them"
                    )
                tensors[name] = tensor
        for name, file_name in self.weight_map.items():
            if name not in tensors:
                raise StartupError(
                    f"{self.folder / _INDEX_FILE}: tensor {shown(name)[1:-1]} is listed in "
                    f"{file_name}, but that file does not have it; download the model again"
                )
        return tensors


def resolve_checkpoint(model: str, *, with_weights: bool = True) -> Checkpoint:
    """Finds a model's files, from the hub if needed.

    If the hub fails, the hub's cache is used if it has the complete model.

    Args:
        model: A folder, or a hub ID such as `Qwen/Qwen3-0.6B`.
        with_weights: Whether the safetensors files are needed.

    Raises:
        StartupError: There is no such model, or one of its files is missing.
    """
    try:
        folder = Path(model).expanduser()
        is_folder = model != "" and folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise cannot_read(Path(model), error) from error
    if is_folder:
        return _read_folder(folder, with_weights=with_weights)
    patterns = [*_CONFIG_FILES, *TOKENIZER_FILES, TOKENIZER_MODEL]
    if with_weights:
        patterns += [_INDEX_FILE, "*.safetensors"]
    try:
        return _read_folder(hub.download(model, patterns), with_weights=with_weights)
    except hub.HubFailed as failure:
        try:
            checkpoint = _read_folder(hub.cached(model, patterns), with_weights=with_weights)
        except StartupError:
            raise hub.refusal(model, str(failure)) from failure
        _logger.warning(
            "hub failed model=%s folder=%s detail=the cached files in this folder are used: %s",
            model,
            checkpoint.folder,
            failure,
        )
        return checkpoint


def _read_folder(folder: Path, *, with_weights: bool) -> Checkpoint:
    if not exists(folder / "config.json"):
        raise StartupError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    if not with_weights:
        return Checkpoint(folder=folder, weights_files=())
    weight_map = _read_weight_map(folder)
    names = sorted(set(weight_map.values())) or [_SINGLE_FILE]
    for name in names:
        if not exists(folder / name):
            raise StartupError(
                f"{folder / name}: is missing; only weights in safetensors files are supported"
                + _other_weights(folder)
            )
    if weight_map and _SINGLE_FILE not in names and exists(folder / _SINGLE_FILE):
        raise StartupError(
            f"{folder} has two sets of weights, {_SINGLE_FILE} and the files in {_INDEX_FILE}; "
            "remove the set that does not belong to the model"
        )
    return Checkpoint(
        folder=folder,
        weights_files=tuple(folder / name for name in names),
        weight_map=weight_map,
    )


def _other_weights(folder: Path) -> str:
    """Returns the end of a refusal: weights that are there, in another format."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS)
    except OSError:
        return ""
    return f", not {shown(names[0])[1:-1]}" if names else ""


def _read_weight_map(folder: Path) -> dict[str, str]:
    """Reads which file holds each tensor; empty if there is no index."""
    path = folder / _INDEX_FILE
    if not exists(path):
        return {}
    weight_map = read_json(path, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StartupError(f"{path}: weight_map is {shown(weight_map)}, must be a non-empty object")
    for name, file_name in weight_map.items():
        if not _is_file_name(file_name):
            raise StartupError(
                f"{path}: weight_map has {shown(file_name)} for {shown(name)}, "
                "must be the name of a file in the same folder"
            )
    return weight_map


def _is_file_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.isprintable()
        and value == Path(value).name
        and value not in ("", "..")
        and len(value.encode()) < 256
    )


def fingerprint(
    checkpoint: Checkpoint, *, dtype: str, load_format: str, seed: int, weights: str
) -> str:
    """Identifies what a model computes, independent of its folder.

    Random weights are identified by their seed, others by the digest of what was read. Engines
    with equal fingerprints hold equal weights.

    Args:
        checkpoint: The model's files.
        dtype: Name of the dtype in which the model runs.
        load_format: `auto` or `dummy`, as in `ModelOptions`.
        seed: Seed of random weights.
        weights: What `load_weights` returned; empty for random weights.

    Returns:
        32 hexadecimal digits (xxh3-128).
    """
    config = {
        name: value
        for name, value in checkpoint.read_config().items()
        if name not in _IRRELEVANT_FIELDS
    }
    facts: dict[str, object] = {"config": config, "dtype": dtype, "load_format": load_format}
    if load_format == "dummy":
        facts["seed"] = seed
    else:
        facts["weights"] = weights
    return str(xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode()))
