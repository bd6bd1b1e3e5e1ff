"""A service's health state, reported over gRPC and HTTP."""

import enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from grpc_health.v1 import health, health_pb2

if TYPE_CHECKING:
    import grpc

_State = TypeVar("_State", bound=enum.Enum)


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]
    """The library's servicer plus `List`, which it lacks; before 1.84.2 its contract does, too."""

    async def List(
        self, request: "health_pb2.HealthListRequest", context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> "health_pb2.HealthListResponse":
        """Returns the state of every service."""
        return health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=status)
                for service, status in self._server_status.items()
            }
        )


class Health(Generic[_State]):
    """A service's lifecycle state; `servicer` reports it as grpc.health.v1.

    The service "" is liveness: false if a restart would help. The service by its name is
    readiness: whether new requests are accepted.

    Args:
        service: Its full name.
        initial: The first state. The value of a state is a text for people.
        serving: The state in which it is ready.
        dead: States in which it is not live.

    Attributes:
        state: The current state.
        servicer: The servicer to add to the server.
    """

    def __init__(
        self, service: str, *, initial: _State, serving: _State, dead: frozenset[_State]
    ) -> None:
        self.state = initial
        self.servicer = HealthServicer()
        self._services = [service]
        self._serving = serving
        self._dead = dead

    @property
    def is_live(self) -> bool:
        """Whether the service is live: false if a restart would help."""
        return self.state not in self._dead

    @property
    def is_ready(self) -> bool:
        """Whether new requests are accepted."""
        return self.state is self._serving

    def add_service(self, service: str) -> None:
        """Reports the readiness by another full name, too, from the next state on."""
        self._services.append(service)

    async def enter(self, state: _State) -> None:
        """Changes the state and notifies all watchers."""
        self.state = state
        await self.servicer.set("", _serving_status(self.is_live))
        for service in self._services:
            await self.servicer.set(service, _serving_status(self.is_ready))


def _serving_status(is_serving: bool) -> "health_pb2.HealthCheckResponse.ServingStatus":
    response = health_pb2.HealthCheckResponse
    return response.SERVING if is_serving else response.NOT_SERVING
