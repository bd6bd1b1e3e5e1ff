"""The engine's health state, reported over gRPC and HTTP."""

import enum

from engine_service.errors import Draining, Starting, core_frozen, core_lost
from servicekit import health

SERVICE_NAME = "pagestream.engine.v1.EngineService"


class State(enum.Enum):
    """The engine's lifecycle state."""

    STARTING = "starting: the model is loading"
    SERVING = "serving"
    DRAINING = "draining: running requests finish, new ones are refused"
    FROZEN = "frozen: the core process does not respond"
    FAILED = "failed: the core process has ended"


class Health(health.Health[State]):
    """The engine's state. A busy or draining engine is live and must not be restarted."""

    def __init__(self) -> None:
        super().__init__(
            SERVICE_NAME,
            initial=State.STARTING,
            serving=State.SERVING,
            dead=frozenset({State.FROZEN, State.FAILED}),
        )

    def check_loaded(self) -> None:
        """Refuses every call while no model is loaded or the core does not answer.

        Raises:
            Starting or EngineFailed.
        """
        if self.state is State.STARTING:
            raise Starting("the engine is loading its model", retry_after=1.0)
        if self.state is State.FROZEN:
            raise core_frozen()
        if self.state is State.FAILED:
            raise core_lost()

    def check_ready(self) -> None:
        """Refuses a new request unless the engine accepts requests.

        Raises:
            Starting, Draining or EngineFailed.
        """
        self.check_loaded()
        if self.state is State.DRAINING:
            raise Draining("the engine is about to exit and takes no new requests")
