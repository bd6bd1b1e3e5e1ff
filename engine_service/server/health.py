"""What the engine says of itself to whoever probes it, over gRPC and HTTP alike."""

import enum

from grpc_health.v1 import health_pb2

from engine_service.errors import Draining, Starting, core_frozen, core_lost
from servicekit.health import HealthServicer

SERVICE_NAME = "pagestream.engine.v1.EngineService"


class State(enum.Enum):
    """Where the engine is in its life."""

    STARTING = "starting: the model is being loaded"
    SERVING = "serving"
    DRAINING = "draining: running requests finish, new ones are refused"
    FROZEN = "frozen: the core's process gives no sign of life"
    FAILED = "failed: the core's process has ended"


class Health:
    """The engine's state; `servicer` answers grpc.health.v1 with it.

    The service "" is liveness, which holds unless the core is frozen or gone: a busy or draining
    engine must not be restarted. The service by its name is readiness.
    """

    def __init__(self) -> None:
        self.state = State.STARTING
        self.servicer = HealthServicer()

    @property
    def is_live(self) -> bool:
        """Whether a restart would not help."""
        return self.state not in (State.FROZEN, State.FAILED)

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return self.state is State.SERVING

    async def enter(self, state: State) -> None:
        """Changes the state and tells all who watch it."""
        self.state = state
        await self.servicer.set("", _serving_status(self.is_live))
        await self.servicer.set(SERVICE_NAME, _serving_status(self.is_ready))

    def check_loaded(self) -> None:
        """Refuses every call while there is no model to speak of, or no core that answers.

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
        """Refuses a new request unless the engine takes any.

        Raises:
            Starting, Draining or EngineFailed.
        """
        self.check_loaded()
        if self.state is State.DRAINING:
            raise Draining("the engine is about to exit and takes no new requests")


def _serving_status(is_serving: bool) -> "health_pb2.HealthCheckResponse.ServingStatus":
    response = health_pb2.HealthCheckResponse
    return response.SERVING if is_serving else response.NOT_SERVING
