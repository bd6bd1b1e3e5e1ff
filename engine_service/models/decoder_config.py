"""The configuration from which `Decoder` is built. Needs no torch."""

from dataclasses import dataclass

from engine_service.models.config_fields import ConfigFields
from engine_service.models.dtypes import READABLE
from engine_service.models.model_config import ModelConfig

# Far above what any dense model has. Each is allocated for, or looped over, in some place.
_MAX_VOCAB_SIZE = 1 << 22
_MAX_WIDTH = 1 << 18
_MAX_LAYERS = 512
_MAX_HEADS = 1024
_MAX_HEAD_DIM = 1024
_MAX_POSITIONS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """The shape and the constants of a dense decoder-only transformer."""

    intermediate_size: int
    num_heads: int
    """Each has `head_dim` dimensions, independent of `hidden_size / num_heads`."""
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    """The language model head is the embedding matrix."""
    has_qk_norm: bool
    """Queries and keys are normalised per head before they are rotated."""
    has_qkv_bias: bool
    """The projections to queries, keys and values add a bias."""

    def check_ranks(self, num_ranks: int) -> None:
        """As `ModelConfig.check_ranks`."""
        ModelConfig.check_ranks(self, num_ranks)
        self.check_divides(num_ranks, "num_attention_heads", self.num_heads)
        self.check_divides(num_ranks, "intermediate_size", self.intermediate_size)


def read_decoder_config(
    architecture: str,
    fields: ConfigFields,
    *,
    has_qk_norm: bool = False,
    has_qkv_bias: bool = False,
    is_head_dim_given: bool = True,
) -> DecoderConfig:
    """Reads the fields that all dense decoders share, and refuses what `Decoder` cannot compute.

    Args:
        architecture: Its name.
        fields: The fields of config.json.
        has_qk_norm: As in `DecoderConfig`.
        has_qkv_bias: Likewise.
        is_head_dim_given: Whether `head_dim` must be given; else a missing one is
            `hidden_size / num_attention_heads`.

    Raises:
        StartupError: A field is missing, invalid or requires something unsupported.
    """
    _refuse_unsupported(fields)
    hidden_size = fields.positive_int("hidden_size", _MAX_WIDTH)
    num_heads = fields.positive_int("num_attention_heads", _MAX_HEADS)
    head_dim = None if is_head_dim_given else hidden_size // num_heads
    config = DecoderConfig(
        architecture=architecture,
        vocab_size=fields.positive_int("vocab_size", _MAX_VOCAB_SIZE),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size", _MAX_WIDTH),
        num_layers=fields.positive_int("num_hidden_layers", _MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=fields.positive_int("num_key_value_heads", _MAX_HEADS),
        head_dim=fields.positive_int("head_dim", _MAX_HEAD_DIM, head_dim),
        max_position_embeddings=fields.positive_int("max_position_embeddings", _MAX_POSITIONS),
        rms_norm_eps=fields.positive_float("rms_norm_eps"),
        rope_theta=_rope_theta(fields),
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
        initializer_range=fields.positive_float("initializer_range", 0.02),
        dtype=_dtype(fields),
        has_qk_norm=has_qk_norm,
        has_qkv_bias=has_qkv_bias,
    )
    if config.num_heads % config.num_kv_heads:
        raise fields.refuse(
            "num_key_value_heads",
            config.num_kv_heads,
            f"must be a divisor of num_attention_heads, which is {config.num_heads}",
        )
    if config.head_dim % 2:
        raise fields.refuse("head_dim", config.head_dim, "must be even")
    return config


def _refuse_unsupported(fields: ConfigFields) -> None:
    fields.must_be("hidden_act", "silu")
    fields.must_be("use_sliding_window", False)
    layer_types = fields.get("layer_types", [])
    if not isinstance(layer_types, list) or set(map(str, layer_types)) - {"full_attention"}:
        raise fields.refuse("layer_types", layer_types, 'supported: "full_attention" only')
    quantization = fields.get("quantization_config")
    if quantization is not None:
        raise fields.refuse(
            "quantization_config", quantization, "quantized weights are not supported"
        )


def _rope_theta(fields: ConfigFields) -> float:
    """Reads the rotary base, in `rope_parameters` (transformers 5) or at the top level (4)."""
    for name in ("rope_parameters", "rope_scaling"):
        parameters = fields.get(name, {})
        if not isinstance(parameters, dict):
            raise fields.refuse(name, parameters, "must be an object or null")
        rope_type = parameters.get("rope_type", parameters.get("type", "default"))
        if rope_type != "default" or parameters.get("partial_rotary_factor", 1.0) != 1.0:
            raise fields.refuse(name, parameters, 'supported: rope_type "default" only')
    parameters = fields.get("rope_parameters", {})
    if isinstance(parameters, dict) and "rope_theta" in parameters:
        return fields.nested("rope_parameters", parameters).positive_float("rope_theta")
    return fields.positive_float("rope_theta")


def _dtype(fields: ConfigFields) -> str:
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    dtype = fields.get(name, "float32")
    if not isinstance(dtype, str) or dtype not in READABLE:
        raise fields.refuse(name, dtype, f"supported: {', '.join(READABLE)}")
    return dtype
