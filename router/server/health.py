"""What the router says of itself to whoever probes it, over gRPC and HTTP alike."""

import enum

from grpc_health.v1 import health_pb2

from router.server.grpc_server import SERVICE
from servicekit.health import HealthServicer


class State(enum.Enum):
    """Where the router is in its life."""

    WAITING = "waiting: no engine takes requests"
    SERVING = "serving"
    DRAINING = "draining: running requests finish, new ones are refused"


class Health:
    """The router's state; `servicer` answers grpc.health.v1 with it.

    The service "" is liveness, which holds as long as the process answers: a restart brings no
    engine back. The service by its name is readiness.
    """

    def __init__(self) -> None:
        self.state = State.WAITING
        self.servicer = HealthServicer()

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return self.state is State.SERVING

    async def enter(self, state: State) -> None:
        """Changes the state and tells all who watch it; there is no way back from DRAINING."""
        if self.state is not State.DRAINING:
            self.state = state
        response = health_pb2.HealthCheckResponse
        await self.servicer.set("", response.SERVING)
        await self.servicer.set(
            SERVICE, response.SERVING if self.is_ready else response.NOT_SERVING
        )
