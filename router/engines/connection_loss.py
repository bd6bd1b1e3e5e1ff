"""Why the connection to an engine ended."""

import asyncio
import enum
import traceback
from dataclasses import dataclass
from typing import TypeVar

import grpc

from protos.wire.status import ErrorStatus, Reason, cut
from router.engines.convert import status_of
from router.types.engine_state import EngineState

_Message = TypeVar("_Message")


class Fault(enum.StrEnum):
    """The kinds of engine faults; the metric uses these names."""

    STALLED = "stalled"
    """The engine had work and made no step."""
    VIOLATION = "violation"
    """The engine sent something that the contract forbids."""
    MISMATCH = "mismatch"
    """The engine is not the one, or not the start of it, that described its model."""
    UNEXPECTED = "unexpected"
    """A message from the engine led to an error in this router."""


class ConnectionLost(Exception):
    """The engine cannot be used for now; the text says why.

    Attributes:
        fault: The engine's fault; None if it is merely unavailable.
    """

    def __init__(self, text: str, fault: Fault | None = None) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How a connection ended.

    Attributes:
        state: The engine's new state.
        detail: Why, for people to read; of bounded length.
        fault: The engine's fault, or None.
        is_draining: Whether the engine ended the connection to drain.
    """

    state: EngineState
    detail: str
    fault: Fault | None = None
    is_draining: bool = False

    @property
    def needs_quarantine(self) -> bool:
        """Whether the engine must report that it is healthy before it is used again."""
        return self.fault not in (None, Fault.MISMATCH)


def violation(text: str) -> ConnectionLost:
    """Returns the error for an engine that breaks the contract; the text says how."""
    return ConnectionLost(f"it broke the contract: {text}", Fault.VIOLATION)


def checked(message: _Message | None) -> _Message:
    """Returns a received message; None stands for one that was refused."""
    if message is None:
        raise violation("a message cannot be parsed or exceeds a bound; the log names the field")
    return message


def ends_task(error: BaseException) -> bool:
    """Tells whether an error only asks the running task to end.

    gRPC also reports a cancelled call as a cancellation; the task itself was not cancelled then.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    kinds = (GeneratorExit, KeyboardInterrupt, SystemExit)
    return any(isinstance(leaf, kinds) for leaf in _leaves(error))


def loss_of(error: BaseException) -> Loss:
    """Returns how a connection ended, from the error or group of errors that ended it."""
    leaves = _leaves(error)
    losses = [leaf for leaf in leaves if isinstance(leaf, ConnectionLost)]
    for loss in losses:
        if loss.fault is not None:
            return Loss(state=EngineState.UNAVAILABLE, detail=cut(str(loss)), fault=loss.fault)
    for leaf in leaves:
        if not isinstance(leaf, ConnectionLost | grpc.aio.AioRpcError):
            detail = cut(f"unexpected {type(leaf).__name__}: {leaf}")
            return Loss(state=EngineState.UNAVAILABLE, detail=detail, fault=Fault.UNEXPECTED)
    # A broken stream also fails the writer, with a less useful text.
    calls = [leaf for leaf in leaves if isinstance(leaf, grpc.aio.AioRpcError)]
    if calls:
        return _ended_by(status_of(calls[0]))
    return Loss(state=EngineState.UNAVAILABLE, detail=cut(str(losses[0])))


def forget_frames(error: BaseException) -> None:
    """Frees what the frames of an error hold, such as the message that caused it, of any size.

    Frames and error reference each other, so that they would stay until garbage is collected.
    """
    for leaf in _leaves(error):
        traceback.clear_frames(leaf.__traceback__)


def _ended_by(status: ErrorStatus) -> Loss:
    """Returns the loss for a connection that the engine or the network ended with a status."""
    is_mismatch = status.reason == Reason.EPOCH_MISMATCH
    is_starting = status.reason == Reason.STARTING
    return Loss(
        state=EngineState.CONNECTING if is_starting else EngineState.UNAVAILABLE,
        detail=status.message,
        fault=Fault.MISMATCH if is_mismatch else None,
        is_draining=status.reason == Reason.DRAINING,
    )


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
