"""Refuses gRPC calls without an API key before their message is read."""

from typing import TYPE_CHECKING, Any

import grpc

from protos.pagestream.router.v1 import router_pb2
from router.access.keyring import Keyring
from router.errors import Unauthenticated
from router.server.status import errors_to_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_METHODS = f"/{router_pb2.DESCRIPTOR.services_by_name['RouterService'].full_name}/"
"""Health and reflection need no key."""


class KeyCheck(grpc.aio.ServerInterceptor):
    """Lets only those through whom a keyring knows."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Any]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401
        """Returns what answers a call."""
        method = handler_call_details.method
        if method.startswith(_METHODS):
            try:
                self._keyring.of_metadata(handler_call_details.invocation_metadata)
            except Unauthenticated as error:
                return _refusing(error, method.removeprefix(_METHODS))
        return await continuation(handler_call_details)


def _refusing(error: Unauthenticated, method: str) -> Any:  # noqa: ANN401
    async def refuse(message: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        async with errors_to_status(context, method):
            raise error

    # Without a parser: the message is dropped as it came.
    return grpc.unary_unary_rpc_method_handler(refuse)
