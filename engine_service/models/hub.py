"""Models from the Hugging Face hub, which may be down, behind a proxy, or return anything."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from engine_service.errors import StartupError

_MAX_REASON_CHARACTERS = 300


class HubFailed(Exception):
    """The hub did not provide the model, for this reason; its cache may still have it."""


def download(model: str, patterns: Sequence[str]) -> Path:
    """Downloads what is not in the cache yet and returns the folder.

    Args:
        model: A hub ID such as `Qwen/Qwen3-0.6B`.
        patterns: Names of the files wanted.

    Raises:
        HubFailed: The hub cannot be reached, its answer is invalid, or it has no such model for us.
        StartupError: The model is not a valid ID.
    """
    # Not above: with it comes an HTTP client, of no use to a model in a folder.
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise StartupError(
            f"model {model!r}: there is no such folder, and it is not a valid hub ID"
        ) from error
    except Exception as error:  # Of the library or below it, for whatever the other side says.
        raise HubFailed(_reason(error)) from error


def cached(model: str, patterns: Sequence[str]) -> Path:
    """Returns the folder of a model in the cache.

    It is known to be complete only if the cache has a list of the model's files.

    Raises:
        StartupError: The cache has none or only some of the files.
    """
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, allow_patterns=list(patterns), local_files_only=True
            )
        )
    except Exception as error:
        raise StartupError(f"model {model!r}: is not in the local cache of the hub") from error


def refusal(model: str, reason: str) -> StartupError:
    """Returns the error for a model that neither disk nor hub has."""
    return StartupError(
        f"model {model!r}: there is no such folder, and the hub does not provide it: {reason}"
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # The library puts "Got: " before the error of a connection.
    reason = lines[0].removeprefix("Got: ") if lines else type(error).__name__
    reason = reason[:_MAX_REASON_CHARACTERS]
    # Connection errors are not OSErrors, but their text is clear.
    if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
        return reason
    return f"its answer is invalid ({type(error).__name__}: {reason})"
