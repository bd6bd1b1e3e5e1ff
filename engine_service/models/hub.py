"""Models from the Hugging Face hub, which may be down, behind a proxy, or say anything."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from engine_service.errors import StartupError

_MAX_REASON_CHARACTERS = 300


class HubFailed(Exception):
    """The hub does not give the model, for this reason; what its cache holds may still do."""


def download(model: str, patterns: Sequence[str]) -> Path:
    """Fetches what is not in the cache yet, and returns the folder.

    Args:
        model: A hub ID such as `Qwen/Qwen3-0.6B`.
        patterns: Names of the files wanted.

    Raises:
        HubFailed: The hub cannot be reached, cannot be understood, or has no such model for us.
        StartupError: The model is not even an ID.
    """
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise StartupError(
            f"model {model!r}: there is no such folder, nor can it be a hub ID"
        ) from error
    except Exception as error:  # Of the library or below it, for whatever the other side says.
        raise HubFailed(_reason(error)) from error


def cached(model: str, patterns: Sequence[str]) -> Path:
    """Returns the folder of what the cache holds of a model.

    It is known to be complete only where the cache holds a list of the model's files.

    Raises:
        StartupError: It holds nothing, or not all.
    """
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, allow_patterns=list(patterns), local_files_only=True
            )
        )
    except Exception as error:
        raise StartupError(f"model {model!r}: is not in the hub's cache") from error


def refusal(model: str, reason: str) -> StartupError:
    """Returns what is said of a model that neither disk nor hub has."""
    return StartupError(
        f"model {model!r}: there is no such folder, and the hub does not give it: {reason}"
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = (lines[0] if lines else type(error).__name__)[:_MAX_REASON_CHARACTERS]
    # Those of the connection are no OSError, but speak for themselves.
    if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
        return reason
    return f"its answer makes no sense ({type(error).__name__}: {reason})"
