"""The configuration from which `Decoder` is built. Needs no torch."""

from dataclasses import dataclass

from engine_service.models.config_fields import ConfigFields
from engine_service.models.dtypes import READABLE
from engine_service.models.model_config import ModelConfig
from engine_service.models.rope_config import MAX_POSITIONS, RopeConfig, read_rope

# Far above what any dense model has. Each is allocated for, or looped over, in some place.
_MAX_VOCAB_SIZE = 1 << 22
_MAX_WIDTH = 1 << 18
_MAX_LAYERS = 512
_MAX_HEADS = 1024
_MAX_HEAD_DIM = 1024
_MAX_WINDOW_LAYERS = 28
"""What transformers takes a missing `max_window_layers` for."""
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """The shape and the constants of a dense decoder-only transformer."""

    intermediate_size: int
    num_heads: int
    """Each has `head_dim` dimensions, independent of `hidden_size / num_heads`."""
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    """The language model head is the embedding matrix."""
    has_qk_norm: bool
    """Queries and keys are normalised per head before they are rotated."""
    has_qkv_bias: bool
    """The projections to queries, keys and values add a bias."""
    attention_scale: float | None = None
    """Multiplies the scores of attention; None is the inverse square root of `head_dim`."""

    def check_ranks(self, num_ranks: int) -> None:
        """As `ModelConfig.check_ranks`."""
        ModelConfig.check_ranks(self, num_ranks)
        self.check_divides(num_ranks, "num_attention_heads", self.num_heads)
        self.check_divides(num_ranks, "intermediate_size", self.intermediate_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderTraits:
    """What all models of an architecture have in common, so that config.json does not say it."""

    has_qk_norm: bool = False
    """As in `DecoderConfig`."""
    has_qkv_bias: bool = False
    """Likewise."""
    has_default_shape: bool = True
    """Whether `head_dim`, `num_key_value_heads` and `rope_theta` may be missing: then each head has
    its share of `hidden_size` and its own keys and values, and the base is 10,000."""
    window_switch: str | None = None
    """The field without which no layer has a sliding window; None if none has one anyway."""
    has_full_layers_first: bool = False
    """Whether the first `max_window_layers` layers have none."""


def read_decoder_config(
    architecture: str, fields: ConfigFields, traits: DecoderTraits
) -> DecoderConfig:
    """Reads the fields that all dense decoders share, and refuses what `Decoder` cannot compute.

    Raises:
        StartupError: A field is missing, invalid or requires something unsupported.
    """
    _refuse_unsupported(fields)
    hidden_size = fields.positive_int("hidden_size", _MAX_WIDTH)
    num_heads = fields.positive_int("num_attention_heads", _MAX_HEADS)
    is_lenient = traits.has_default_shape
    rope = read_rope(fields, 10_000.0 if is_lenient else None)
    num_layers = fields.positive_int("num_hidden_layers", _MAX_LAYERS)
    config = DecoderConfig(
        architecture=architecture,
        vocab_size=fields.positive_int("vocab_size", _MAX_VOCAB_SIZE),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size", _MAX_WIDTH),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.positive_int(
            "num_key_value_heads", _MAX_HEADS, num_heads if is_lenient else None
        ),
        head_dim=fields.positive_int(
            "head_dim", _MAX_HEAD_DIM, hidden_size // num_heads if is_lenient else None
        ),
        max_sequence_len=rope.num_positions,
        max_sequence_len_field=rope.num_positions_field,
        rms_norm_eps=fields.positive_float("rms_norm_eps"),
        rope=rope,
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
        initializer_range=fields.positive_float("initializer_range", 0.02),
        dtype=_dtype(fields),
        has_qk_norm=traits.has_qk_norm,
        has_qkv_bias=traits.has_qkv_bias,
        windows=_windows(fields, traits, num_layers),
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
    quantization = fields.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise fields.refuse(
            "quantization_config",
            quantization if method is None else method,
            f"quantized weights are not supported; supported: {', '.join(READABLE)}",
        )


def _windows(fields: ConfigFields, traits: DecoderTraits, num_layers: int) -> tuple[int, ...]:
    layer_types = fields.get("layer_types", _default_layer_types(fields, traits, num_layers))
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != num_layers
        or set(map(str, layer_types)) - {_FULL, _SLIDING}
    ):
        needed = f"must be a list of {num_layers} (num_hidden_layers), each {_FULL} or {_SLIDING}"
        raise fields.refuse("layer_types", layer_types, needed)
    if _SLIDING not in layer_types:
        return (0,) * num_layers
    window = fields.positive_int("sliding_window", MAX_POSITIONS)
    return tuple(window if layer_type == _SLIDING else 0 for layer_type in layer_types)


def _default_layer_types(fields: ConfigFields, traits: DecoderTraits, num_layers: int) -> list[str]:
    """Returns the types of a config.json that does not list them, as those of transformers 4."""
    switch = traits.window_switch
    if switch is None or fields.get(switch, False) is False:
        return [_FULL] * num_layers
    num_full: object = 0
    if traits.has_full_layers_first:
        num_full = fields.get("max_window_layers", _MAX_WINDOW_LAYERS)
    if not isinstance(num_full, int) or not 0 <= num_full <= _MAX_LAYERS:
        raise fields.refuse("max_window_layers", num_full, f"must be from 0 to {_MAX_LAYERS}")
    num_full = min(num_full, num_layers)
    return [_FULL] * num_full + [_SLIDING] * (num_layers - num_full)


def _dtype(fields: ConfigFields) -> str:
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    dtype = fields.get(name, "float32")
    if not isinstance(dtype, str) or dtype not in READABLE:
        raise fields.refuse(name, dtype, f"supported: {', '.join(READABLE)}")
    return dtype
