"""grpc.health.v1 as all our services answer it."""

from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health, health_pb2

if TYPE_CHECKING:
    import grpc


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]
    """The library's, which lacks `List`; before 1.84.2 its contract lacks it, too."""

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
