"""The rotary embedding of a config.json, as transformers 4 and 5 write it. Needs no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine_service.layers.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from engine_service.models.config_fields import ConfigFields

MAX_POSITIONS = 1 << 22
"""The most positions of a model: each has a row of a table."""
_MAX_FACTOR = 1e4
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """The rotary embedding of all layers."""

    theta: float
    scaling: RopeScaling | None
    num_positions: int
    """The longest sequence in tokens."""
    num_positions_field: str
    """The field of config.json that says so."""


def read_rope(fields: ConfigFields, default_theta: float | None) -> RopeConfig:
    """Reads the rotary embedding and the longest sequence.

    Args:
        fields: The fields of config.json.
        default_theta: The base if none is given; None means that it must be.

    Raises:
        StartupError: A field is missing or invalid, or the embedding is of an unsupported type.
    """
    source = "max_position_embeddings"
    num_positions = fields.positive_int(source, MAX_POSITIONS)
    name, parameters = _parameters(fields)
    inner = fields.nested(name, parameters)
    for where in (fields, inner):
        where.must_be("partial_rotary_factor", 1.0)
    given = inner if "rope_theta" in parameters else fields
    theta = given.positive_float("rope_theta", default_theta)
    if theta <= 1:
        raise given.refuse("rope_theta", theta, "must be above 1")
    rope_type = inner.get("rope_type", inner.get("type", "default"))
    read = _READ.get(rope_type) if isinstance(rope_type, str) else None
    if read is None:
        raise inner.refuse("rope_type", rope_type, f"supported: {', '.join(_READ)}")
    scaling = read(inner, num_positions)
    if isinstance(scaling, YarnScaling):
        # Many checkpoints leave the other field as it was in the training.
        scaled = int(scaling.factor * scaling.original_max_position_embeddings)
        if num_positions < scaled <= MAX_POSITIONS:
            num_positions, source = scaled, f"{name} ({_ORIGINAL} * factor)"
    return RopeConfig(
        theta=theta, scaling=scaling, num_positions=num_positions, num_positions_field=source
    )


def _parameters(fields: ConfigFields) -> tuple[str, Mapping[str, object]]:
    """Returns the object that holds them, which transformers 4 called `rope_scaling`."""
    found: dict[str, Mapping[str, object]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        parameters = fields.get(name, {})
        if not isinstance(parameters, dict):
            raise fields.refuse(name, parameters, "must be an object or null")
        if parameters:
            found[name] = parameters
    if len(found) == 2 and found["rope_parameters"] != found["rope_scaling"]:
        raise fields.refuse("rope_scaling", found["rope_scaling"], "differs from rope_parameters")
    return next(iter(found.items()), ("rope_parameters", {}))


def _read_none(fields: ConfigFields, num_positions: int) -> None:
    """Default, and dynamic up to `max_position_embeddings`, beyond which nothing is served."""


def _read_linear(fields: ConfigFields, num_positions: int) -> LinearScaling:
    return LinearScaling(factor=_factor(fields))


def _read_llama3(fields: ConfigFields, num_positions: int) -> Llama3Scaling:
    low, high = (fields.positive_float(f"{name}_freq_factor") for name in ("low", "high"))
    if low >= high:
        raise fields.refuse("low_freq_factor", low, f"must be below high_freq_factor {high:g}")
    return Llama3Scaling(
        factor=_factor(fields),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=_original(fields, num_positions),
    )


def _read_yarn(fields: ConfigFields, num_positions: int) -> YarnScaling:
    original = _original(fields, num_positions)
    implied = None if fields.get(_ORIGINAL) is None else max(1.0, num_positions / original)
    factor = _factor(fields, implied)
    fast, slow = fields.positive_float("beta_fast", 32.0), fields.positive_float("beta_slow", 1.0)
    if slow >= fast:
        raise fields.refuse("beta_slow", slow, f"must be below beta_fast {fast:g}")
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=fields.positive_float("attention_factor", _mscale_ratio(fields, factor)),
        truncate=fields.boolean("truncate", default=True),
    )


_READ: dict[str, Callable[[ConfigFields, int], RopeScaling | None]] = {
    "default": _read_none,
    "linear": _read_linear,
    "dynamic": _read_none,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
}


def _factor(fields: ConfigFields, default: float | None = None) -> float:
    factor = fields.positive_float("factor", default)
    if not 1 <= factor <= _MAX_FACTOR:
        raise fields.refuse("factor", factor, f"must be from 1 to {_MAX_FACTOR:g}")
    return factor


def _original(fields: ConfigFields, num_positions: int) -> int:
    return fields.positive_int(_ORIGINAL, MAX_POSITIONS, num_positions)


def _mscale_ratio(fields: ConfigFields, factor: float) -> float:
    """Returns the attention factor that follows from the others."""
    # 0 means that it is not used, as does null.
    scales = [fields.get(name, 0.0) for name in ("mscale", "mscale_all_dim")]
    if not all(scales):
        return _mscale(factor, 1.0)
    mscale, all_dim = (fields.positive_float(name) for name in ("mscale", "mscale_all_dim"))
    return _mscale(factor, mscale) / _mscale(factor, all_dim)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0
