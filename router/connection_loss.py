"""Why the connection to an engine ended."""

from typing import TypeVar

import grpc

from protos.wire.status import ErrorStatus, Reason
from router.engine_convert import status_of
from router.types import EngineState

_Message = TypeVar("_Message")


class ConnectionLost(Exception):
    """The engine cannot be used for now; the text says why."""


def checked(message: _Message | None) -> _Message:
    """Returns a message that came; what cannot be parsed arrives as None."""
    if message is None:
        raise ConnectionLost("it sent a message that is not of the contract")
    return message


def is_draining(group: BaseException) -> bool:
    """Returns whether the engine ended the connection to drain."""
    status = _call_status(group)
    return status is not None and status.reason == Reason.DRAINING


def describe(group: BaseException) -> tuple[EngineState, str]:
    """Returns state and detail of an engine whose connection ended with these errors."""
    status = _call_status(group)
    if status is None:
        return EngineState.UNAVAILABLE, str(_leaves(group)[0])
    starting = status.reason == Reason.STARTING
    return (EngineState.CONNECTING if starting else EngineState.UNAVAILABLE), status.message


def _call_status(group: BaseException) -> ErrorStatus | None:
    """Returns how the engine ended a call, if that is why its connection ended."""
    # A broken stream also fails the writer, in words that say less.
    calls = [leaf for leaf in _leaves(group) if isinstance(leaf, grpc.aio.AioRpcError)]
    return status_of(calls[0]) if calls else None


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
