"""The sampling parameters that a model's authors recommend, from its generation_config.json."""

import logging
from pathlib import Path

from engine_service.models.json_file import read_json, shown
from engine_service.models.plain_file import exists
from protos.wire.sampling_params import DEFAULT_PARAMS, SamplingParams, out_of_bounds

_FILE = "generation_config.json"

_logger = logging.getLogger(__name__)


def read_default_sampling_params(folder: Path) -> SamplingParams:
    """Reads the parameters that apply where a request leaves them unset.

    As in vLLM, `do_sample` does not matter: a temperature applies even where the file asks
    transformers for greedy decoding. A value that no request could have is logged and ignored, as a
    file from the hub should not stop an engine that can serve without it.

    Args:
        folder: The model folder.

    Raises:
        StartupError: The file cannot be read or is not a JSON object.
    """
    path = folder / _FILE
    values = read_json(path) if exists(path) else {}
    defaults: dict[str, float] = {}
    for name in DEFAULT_PARAMS:
        value = values.get(name)
        if value is None:
            continue
        needed = _needed(name, value)
        if needed is not None:
            _logger.warning(
                "default sampling parameter ignored file=%s field=%s value=%s detail=must be %s",
                path,
                name,
                shown(value),
                needed,
            )
            continue
        defaults[name] = value  # type: ignore[assignment]  # `_needed` accepts numbers only
    params = SamplingParams(**defaults)  # type: ignore[arg-type]
    if defaults:
        settings = " ".join(f"{name}={value:g}" for name, value in defaults.items())
        _logger.info("default sampling parameters file=%s %s", path, settings)
    return params


def _needed(name: str, value: object) -> str | None:
    """Returns what the parameter must be, or None if the value is that."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number"
    fault = out_of_bounds(SamplingParams(**{name: value}))  # type: ignore[arg-type]
    return None if fault is None else fault.bounds
