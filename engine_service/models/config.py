"""A Hugging Face config.json, as transformers 4 and 5 write it, turned into a `ModelConfig`."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine_service.errors import StartupError
from engine_service.models.json_file import shown

SUPPORTED_ARCHITECTURES = ("Qwen3ForCausalLM",)
SUPPORTED_DTYPES = ("float32", "bfloat16", "float16")

# Far above what any dense model has. Each is allocated for, or looped over, in some place.
_MAX_VOCAB_SIZE = 1 << 22
_MAX_WIDTH = 1 << 18
_MAX_LAYERS = 512
_MAX_HEADS = 1024
_MAX_HEAD_DIM = 1024
_MAX_POSITIONS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape and the constants of a dense decoder-only transformer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Independent of `hidden_size / num_heads`."""
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    """The language model head is the embedding matrix."""
    initializer_range: float
    """Standard deviation of random weights."""
    dtype: str
    """Name of the dtype that the checkpoint says it is stored in."""


class _Fields:
    """Reads one config.json field by field; each refusal names field, value and what is needed."""

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self._values = values
        self._source = source

    def get(self, name: str, default: object = None) -> object:
        value = self._values.get(name)
        return default if value is None else value

    def refuse(self, name: str, value: object, needed: str) -> StartupError:
        found = "is missing" if value is None else f"is {shown(value)}"
        return StartupError(f"{self._source}: {name} {found}; {needed}")

    def positive_int(self, name: str, bound: int) -> int:
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= bound:
            raise self.refuse(name, value, f"needed is an integer from 1 to {bound}")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.refuse(name, value, "needed is a positive number")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.get(name, False)
        if not isinstance(value, bool):
            raise self.refuse(name, value, "needed is true or false")
        return value

    def must_be(self, name: str, supported: object) -> None:
        """Refuses a field whose value, if there is one, is not the single supported one."""
        value = self.get(name, supported)
        if value != supported:
            raise self.refuse(name, value, f"supported is only {shown(supported)}")


def parse_config(values: Mapping[str, object], source: str = "config.json") -> ModelConfig:
    """Checks a config.json's content and keeps what the model needs.

    Args:
        values: The JSON object.
        source: Name of the file, for messages.

    Raises:
        StartupError: A field is missing, makes no sense or asks for something unsupported.
    """
    fields = _Fields(values, source)
    architecture = _architecture(fields)
    _refuse_unsupported(fields)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.positive_int("vocab_size", _MAX_VOCAB_SIZE),
        hidden_size=fields.positive_int("hidden_size", _MAX_WIDTH),
        intermediate_size=fields.positive_int("intermediate_size", _MAX_WIDTH),
        num_layers=fields.positive_int("num_hidden_layers", _MAX_LAYERS),
        num_heads=fields.positive_int("num_attention_heads", _MAX_HEADS),
        num_kv_heads=fields.positive_int("num_key_value_heads", _MAX_HEADS),
        head_dim=fields.positive_int("head_dim", _MAX_HEAD_DIM),
        max_position_embeddings=fields.positive_int("max_position_embeddings", _MAX_POSITIONS),
        rms_norm_eps=fields.positive_float("rms_norm_eps"),
        rope_theta=_rope_theta(fields, source),
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
        initializer_range=fields.positive_float("initializer_range", 0.02),
        dtype=_dtype(fields),
    )
    if config.num_heads % config.num_kv_heads:
        raise fields.refuse(
            "num_key_value_heads",
            config.num_kv_heads,
            f"needed is a divisor of num_attention_heads, which is {config.num_heads}",
        )
    if config.head_dim % 2:
        raise fields.refuse("head_dim", config.head_dim, "needed is an even number")
    return config


def _architecture(fields: _Fields) -> str:
    architectures = fields.get("architectures")
    if isinstance(architectures, list) and len(architectures) == 1:
        architecture = architectures[0]
        if architecture in SUPPORTED_ARCHITECTURES:
            return str(architecture)
    supported = ", ".join(SUPPORTED_ARCHITECTURES)
    raise fields.refuse("architectures", architectures, f"supported is one of: {supported}")


def _refuse_unsupported(fields: _Fields) -> None:
    fields.must_be("attention_bias", False)
    fields.must_be("hidden_act", "silu")
    fields.must_be("use_sliding_window", False)
    layer_types = fields.get("layer_types", [])
    if not isinstance(layer_types, list) or set(map(str, layer_types)) - {"full_attention"}:
        raise fields.refuse("layer_types", layer_types, "supported is only full_attention")
    quantization = fields.get("quantization_config")
    if quantization is not None:
        raise fields.refuse("quantization_config", quantization, "supported are plain weights")


def _rope_theta(fields: _Fields, source: str) -> float:
    """Reads the rotary base: in `rope_parameters` (transformers 5) or at the top (4)."""
    for name in ("rope_parameters", "rope_scaling"):
        parameters = fields.get(name, {})
        if not isinstance(parameters, dict):
            raise fields.refuse(name, parameters, "needed is an object or null")
        rope_type = parameters.get("rope_type", parameters.get("type", "default"))
        if rope_type != "default" or parameters.get("partial_rotary_factor", 1.0) != 1.0:
            raise fields.refuse(name, parameters, 'supported is only rope_type "default"')
    parameters = fields.get("rope_parameters", {})
    if isinstance(parameters, dict) and "rope_theta" in parameters:
        return _Fields(parameters, f"{source}: rope_parameters").positive_float("rope_theta")
    return fields.positive_float("rope_theta")


def _dtype(fields: _Fields) -> str:
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    dtype = fields.get(name, "float32")
    if dtype not in SUPPORTED_DTYPES:
        raise fields.refuse(name, dtype, f"supported is one of: {', '.join(SUPPORTED_DTYPES)}")
    return str(dtype)
