"""The errors that an engine raises.

ServiceError                base of all; it and StartupError are in servicekit
├── StartupError            the process cannot serve; exit code 2
└── RequestError            one request (or stream) ends with it; `reason` names it on the wire
    ├── InvalidRequest      the client must change the request
    ├── QueueFull           come back after `retry_after` seconds, or go elsewhere
    ├── SlowReader          the client does not read what it asked for
    ├── DeadlineExceeded    the request's own time limit passed
    ├── Starting            the model is not loaded yet
    ├── Draining            the engine is about to exit
    ├── EpochMismatch       the router means another start of an engine
    ├── EngineFailed        the engine lost its core, a rank, or its check of grammars
    └── NoTokenizer         the model folder holds no tokenizer files
"""

from collections.abc import Sequence

from protos.wire.reason import Reason
from servicekit import errors
from servicekit.errors import StartupError as StartupError

DOMAIN = "pagestream.engine.v1"


class RequestError(errors.RequestError):
    """One request ends with this error. It is sent from the core to the server."""

    domain = DOMAIN


class InvalidRequest(RequestError):
    """The client must change the request. The reason says which part is wrong."""

    reason = Reason.BAD_REQUEST


class QueueFull(RequestError):
    """Too many requests wait here already."""

    reason = Reason.QUEUE_FULL


class SlowReader(RequestError):
    """The client reads too slowly and its buffer is full."""

    reason = Reason.SLOW_READER


class DeadlineExceeded(RequestError):
    """The request's own time limit has passed."""

    reason = Reason.DEADLINE_EXCEEDED


class Starting(RequestError):
    """The model is not loaded yet."""

    reason = Reason.STARTING


class Draining(RequestError):
    """The engine finishes its open requests and accepts no new ones."""

    reason = Reason.DRAINING


class EpochMismatch(RequestError):
    """The router means another start of an engine, perhaps of another model."""

    reason = Reason.EPOCH_MISMATCH


class EngineFailed(RequestError):
    """The engine lost its core, one of its ranks, or the process that checks grammars."""

    reason = Reason.ENGINE_FAILED


def core_lost() -> EngineFailed:
    """Returns the error for all calls once the core process is gone."""
    return EngineFailed("the engine's core process has ended; try another engine")


def invalid_logits(position: int) -> RequestError:
    """Returns the error for a request whose next token, at this position, cannot be sampled."""
    return RequestError(
        f"the model's logits for position {position} are NaN or infinite, so no token can be "
        "sampled; its weights, its dtype or the device may be at fault",
        {"position": str(position)},
        reason=Reason.INTERNAL,
    )


def unusable_grammar(form: str, why: str) -> InvalidRequest:
    """Returns the error for a request whose grammar, of this form, cannot be used."""
    field = f"grammar.{form}" if form else "grammar"
    return InvalidRequest(
        f"{field} cannot be used: {why}",
        {"field": field, "bounds": why},
        reason=Reason.BAD_SAMPLING_PARAMS,
    )


def grammar_not_checked(form: str, why: str) -> EngineFailed:
    """Returns the error for a request whose grammar, of this form, could not be checked."""
    return EngineFailed(
        f"grammar.{form} could not be checked: {why}; try again or try another engine",
        {"detail": why},
    )


def grammar_failed(position: int, why: str) -> RequestError:
    """Returns the error for a request whose grammar cannot say what comes at this position."""
    return RequestError(
        f"the grammar allows no token at position {position}: {why}",
        {"position": str(position), "detail": why},
        reason=Reason.INTERNAL,
    )


def resume_mismatch(index: int, token_id: int, form: str) -> InvalidRequest:
    """Returns the error for a request whose grammar, of this form, forbids a resumed token."""
    return InvalidRequest(
        f"resume_token_ids[{index}] is {token_id}, which grammar.{form} does not allow there",
        {
            "field": "resume_token_ids",
            "index": str(index),
            "value": str(token_id),
            "bounds": f"tokens that grammar.{form} allows",
        },
    )


def nothing_allowed(position: int, fields: Sequence[str]) -> InvalidRequest:
    """Returns the error for a request whose parameters leave no token for this position."""
    names = ", ".join(fields)
    return InvalidRequest(
        f"{names} together allow no token at position {position}",
        {"field": names, "position": str(position), "bounds": "a token that all of them allow"},
        reason=Reason.BAD_SAMPLING_PARAMS,
    )


def core_frozen() -> EngineFailed:
    """Returns the error for all calls while the core process sends no heartbeat."""
    return EngineFailed("the engine's core process does not respond; try another engine")


class NoTokenizer(RequestError):
    """The model folder holds no tokenizer files."""

    reason = Reason.NO_TOKENIZER
