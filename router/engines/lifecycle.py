"""The life of one engine as this router sees it: its stages, and what follows from them.

Nothing else holds any of it. The client and the fleet say what happened; the fleet is told of every
change, and the client waits for the end.
"""

import asyncio
import enum
import logging
import time
from collections.abc import Callable

from router.engines.connection_loss import Loss
from router.types.engine_state import EngineLoad, EngineState, ModelInfo

_logger = logging.getLogger(__name__)


class Stage(enum.Enum):
    """Where an engine is in its life."""

    AWAY = "away"
    """Not connected; the router tries again and again."""
    QUARANTINED = "quarantined"
    """Not connected since it stalled or misbehaved; it must first report that it is healthy."""
    ACCEPTED = "accepted"
    """Its model agrees with that of other engines; its stream is not open yet."""
    CONNECTED = "connected"
    """Its stream is open; its load reports say whether it takes requests."""
    LEAVING = "leaving"
    """Connected and removed from the list of engines; it finishes its requests."""
    CLOSED = "closed"
    """Gone for good; its connection is being ended. Until then, it stays in its last state."""


class _Event(enum.Enum):
    """What can happen to an engine."""

    ACCEPTED = "accepted"
    REPORTED = "first report"
    LOST = "lost"
    FAULT = "fault"
    RECOVERED = "recovered"
    REMOVED = "removed"
    RETURNED = "returned"
    IDLE = "idle"
    CLOSED = "closed"


_NEXT = {
    Stage.AWAY: {
        _Event.ACCEPTED: Stage.ACCEPTED,
        _Event.LOST: Stage.AWAY,
        _Event.FAULT: Stage.QUARANTINED,
        _Event.REMOVED: Stage.CLOSED,
        _Event.CLOSED: Stage.CLOSED,
    },
    Stage.QUARANTINED: {
        _Event.RECOVERED: Stage.AWAY,
        _Event.LOST: Stage.QUARANTINED,
        _Event.FAULT: Stage.QUARANTINED,
        _Event.REMOVED: Stage.CLOSED,
        _Event.CLOSED: Stage.CLOSED,
    },
    Stage.ACCEPTED: {
        _Event.REPORTED: Stage.CONNECTED,
        _Event.LOST: Stage.AWAY,
        _Event.FAULT: Stage.QUARANTINED,
        _Event.REMOVED: Stage.CLOSED,
        _Event.CLOSED: Stage.CLOSED,
    },
    Stage.CONNECTED: {
        _Event.LOST: Stage.AWAY,
        _Event.FAULT: Stage.QUARANTINED,
        _Event.REMOVED: Stage.LEAVING,
        _Event.CLOSED: Stage.CLOSED,
    },
    Stage.LEAVING: {
        _Event.RETURNED: Stage.CONNECTED,
        _Event.IDLE: Stage.CLOSED,
        _Event.LOST: Stage.CLOSED,
        _Event.FAULT: Stage.CLOSED,
        _Event.CLOSED: Stage.CLOSED,
    },
    # The connection takes a moment to end, and what happens to it then is without effect.
    Stage.CLOSED: dict.fromkeys(_Event, Stage.CLOSED),
}
"""The stage that follows each event; an event that is not named for a stage is a bug."""

_CONNECTED = (Stage.CONNECTED, Stage.LEAVING)
_ACCEPTED = (Stage.ACCEPTED, *_CONNECTED)
_KNOWN = (Stage.QUARANTINED, *_ACCEPTED)

_NEVER_CONNECTED = Loss(state=EngineState.CONNECTING, detail="not connected yet")
_WAS_CLOSED = Loss(state=EngineState.UNAVAILABLE, detail="its connection was closed")

_EXPECTED = (EngineState.CONNECTING, EngineState.SERVING)
"""Every start of an engine goes through these: a change to one of them is no warning."""
_DETAILS = {EngineState.SERVING: "", EngineState.DRAINING: "it finishes its requests"}


class Lifecycle:
    """The stage of one engine, its model and load, and why it was lost.

    Args:
        address: "host:port" of the engine.
        changed: Called after each change of the state, and after each failed attempt to connect.

    Attributes:
        address: "host:port" of the engine.
        stage: Where the engine is in its life.
        state: Whether requests are sent to it.
        detail: Why it is not serving, for people to read; empty if it is.
        loss: How the last connection ended; while connected, how it would end without a reason.
        load: The engine's last load report; all zero while it is not connected.
        model: The engine's model from the last connection, or None.
        accepted_at: When that was accepted, by `time.monotonic`.
        closed: Set once the engine is closed.
    """

    def __init__(self, address: str, changed: Callable[[], None]) -> None:
        self.address = address
        self.stage = Stage.AWAY
        self.loss = _NEVER_CONNECTED
        self.state, self.detail = self.loss.state, self.loss.detail
        self.load = EngineLoad()
        self.model: ModelInfo | None = None
        self.accepted_at = 0.0
        self.closed = asyncio.Event()
        self._changed = changed

    @property
    def takes_requests(self) -> bool:
        """Whether requests may be sent to the engine."""
        return self.state is EngineState.SERVING

    @property
    def served_model(self) -> ModelInfo | None:
        """The model that the engine serves, while it is connected."""
        is_serving = self.state is EngineState.SERVING or self.state is EngineState.DRAINING
        return self.model if is_serving else None

    @property
    def accepted_model(self) -> ModelInfo | None:
        """The model from its acceptance to the loss; others of its name must agree with it."""
        return self.model if self.stage in _ACCEPTED else None

    @property
    def known_model(self) -> ModelInfo | None:
        """The model behind the address, while the engine is accepted or quarantined."""
        return self.model if self.stage in _KNOWN else None

    def accept(self, model: ModelInfo) -> None:
        """Notes that the engine described a model that it may serve."""
        self._take(_Event.ACCEPTED)
        self.model, self.accepted_at = model, time.monotonic()

    def report(self, load: EngineLoad) -> None:
        """Takes a load report; the first one after the acceptance makes the engine connected."""
        if self.stage is Stage.CLOSED:
            return
        is_first = self.stage not in _CONNECTED
        if is_first:
            self._take(_Event.REPORTED)
            self.loss = _WAS_CLOSED
        is_change = is_first or load.state is not self.load.state
        self.load = load
        if is_change:
            self._update(is_logged=True)

    def lose(self, loss: Loss) -> None:
        """Notes that the connection, or an attempt to connect, failed."""
        self._take(_Event.FAULT if loss.needs_quarantine else _Event.LOST)
        self.loss, self.load = loss, EngineLoad()
        self._update(is_logged=True)

    def recover(self) -> None:
        """Notes that the quarantined engine reports that it is healthy."""
        self._take(_Event.RECOVERED)

    def leave(self) -> None:
        """Notes that the engine was removed from the list; only a connected one may return."""
        self._take(_Event.REMOVED)
        self._update()

    def come_back(self) -> None:
        """Notes that the leaving engine is in the list again."""
        self._take(_Event.RETURNED)
        self._update()

    def idle(self) -> None:
        """Notes that the engine has no requests; one that leaves is closed then."""
        if self.stage is Stage.LEAVING:
            self._take(_Event.IDLE)

    def close(self) -> None:
        """Notes that the connection has ended for good."""
        self._take(_Event.CLOSED)
        self.loss = _WAS_CLOSED
        self._update()

    def _take(self, event: _Event) -> None:
        stage = _NEXT[self.stage].get(event)
        if stage is None:
            raise RuntimeError(
                f'engine {self.address} is {self.stage.value}, where "{event.value}" cannot happen'
            )
        self.stage = stage
        if stage is Stage.CLOSED:
            self.closed.set()

    def _update(self, *, is_logged: bool = False) -> None:
        before = self.state, self.detail
        self.state, self.detail = self._state_and_detail()
        if is_logged and (self.state, self.detail) != before:
            _logger.log(
                logging.INFO if self.state in _EXPECTED else logging.WARNING,
                "engine state changed engine=%s state=%s detail=%s",
                self.address,
                self.state.value,
                self.detail,
            )
        self._changed()

    def _state_and_detail(self) -> tuple[EngineState, str]:
        if self.stage not in _CONNECTED:
            return self.loss.state, self.loss.detail
        state = self.load.state
        if self.stage is Stage.LEAVING and state is EngineState.SERVING:
            return EngineState.DRAINING, "it was removed from the list of engines"
        return state, _DETAILS.get(state, "it reports an unknown state")
