"""Server handlers that parse requests within bounds and refuse them with our own errors.

Handlers are built from a service's description. A refused message ends its call or stream with
INVALID_ARGUMENT, and is counted and logged here for all services.
"""

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from protos.wire.message_parser import Malformed, MessageParser
from protos.wire.status import error_status, to_rpc_status
from servicekit.grpc_tls import ClientNames
from servicekit.health import HealthServicer
from servicekit.reflection import V1ALPHA, ReflectionV1, v1

_LOG_SECONDS = 5.0
"""Time between two log lines about refused messages."""

_logger = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class MalformedMessage(Exception):
    """A stream received a message that was refused."""

    def __init__(self, malformed: Malformed) -> None:
        super().__init__(malformed.text)
        self.malformed = malformed


class RefusalLog:
    """Counts refused messages and logs a few of them.

    Args:
        count: Called for each message with its method, as "Service/Method".
    """

    def __init__(self, count: Callable[[str], None] = lambda _: None) -> None:
        self._count = count
        self._num_unlogged = 0
        self._next_line = 0.0

    def add(self, method: str, peer: str, malformed: Malformed) -> None:
        """Records one message of a peer."""
        self._count(method)
        now = time.monotonic()
        if now < self._next_line:
            self._num_unlogged += 1
            return
        _logger.warning(
            "message refused method=%s peer=%s num_unlogged=%d error=%s",
            method,
            peer,
            self._num_unlogged,
            malformed.text,
        )
        self._next_line, self._num_unlogged = now + _LOG_SECONDS, 0


class GenericServer(Protocol):
    """What handlers are added to: a server of grpc.aio, or several that act as one."""

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler], /) -> None:
        """Serves what the handlers know."""


class Handlers:
    """Registers services with a server.

    Args:
        server: Not started yet.
        domain: The domain in the ErrorInfo of refusals.
        refusals: Counts and logs them.
        clients: The clients that are served; None is all.
    """

    def __init__(
        self,
        server: GenericServer,
        *,
        domain: str,
        refusals: RefusalLog,
        clients: ClientNames | None = None,
    ) -> None:
        self._server = server
        self._clients = clients
        self._domain = domain
        self._refusals = refusals
        self._names: list[str] = []

    def add(
        self,
        service: ServiceDescriptor,
        servicer: object,
        parsers: "dict[str, Callable[[bytes], Any]] | None" = None,
    ) -> None:
        """Serves a service.

        Args:
            service: Its description.
            servicer: Has a coroutine function, or an async generator, for each method.
            parsers: Parsers by method, for requests that are not parsed as their own type.
        """
        handlers = {}
        for method in service.methods:
            parser = (parsers or {}).get(method.name) or MessageParser(
                GetMessageClass(method.input_type)
            )
            handlers[method.name] = self._handler(method, getattr(servicer, method.name), parser)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )

        self._names.append(service.full_name)

    def add_health(self, servicer: HealthServicer) -> None:
        """Serves grpc.health.v1."""
        self.add(health_pb2.DESCRIPTOR.services_by_name["Health"], servicer)

    def add_reflection(self) -> None:
        """Serves reflection, in both versions, for all services added so far."""
        names = (*self._names, v1().full_name, V1ALPHA.full_name)
        self.add(v1(), ReflectionV1(names))
        self.add(V1ALPHA, reflection.aio.ReflectionServicer(names))

    def _handler(
        self,
        method: MethodDescriptor,
        behavior: Any,  # noqa: ANN401
        parser: Callable[[bytes], Any],
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        up = "stream" if method.client_streaming else "unary"
        down = "stream" if method.server_streaming else "unary"
        make = getattr(grpc, f"{up}_{down}_rpc_method_handler")
        name = f"{method.containing_service.name}/{method.name}"
        wrap = self._on_stream if method.client_streaming else self._on_message
        answer = wrap(name, behavior)
        if self._clients is not None:
            answer = _guarded(self._clients, name, answer)
        handler: grpc.RpcMethodHandler[Any, Any] = make(
            answer,
            request_deserializer=parser,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        return handler

    def _on_message(
        self, name: str, behavior: Callable[[Any, _Context], Awaitable[Any]]
    ) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def answer(request: Any, context: _Context) -> Any:  # noqa: ANN401
            if isinstance(request, Malformed):
                self._refusals.add(name, context.peer(), request)
                await self._abort(context, request)
            return await behavior(request, context)

        return answer

    def _on_stream(self, name: str, behavior: Any) -> Any:  # noqa: ANN401
        async def taken(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
            async for request in requests:
                if isinstance(request, Malformed):
                    self._refusals.add(name, context.peer(), request)
                    raise MalformedMessage(request)
                yield request

        async def answer(requests: AsyncIterator[Any], context: _Context) -> None:
            try:
                await behavior(taken(requests, context), context)
            except MalformedMessage as error:
                await self._abort(context, error.malformed)

        async def generate(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
            try:
                async for response in behavior(taken(requests, context), context):
                    yield response
            except MalformedMessage as error:
                await self._abort(context, error.malformed)

        return generate if inspect.isasyncgenfunction(behavior) else answer

    async def _abort(self, context: _Context, malformed: Malformed) -> None:
        status = error_status(
            malformed.reason, malformed.text, domain=self._domain, metadata=malformed.metadata
        )
        await context.abort_with_status(rpc_status.to_status(to_rpc_status(status)))


def _guarded(clients: ClientNames, name: str, handle: Any) -> Any:  # noqa: ANN401
    """Returns a handler that ends calls of clients that are not served."""

    async def answer(request: Any, context: _Context) -> Any:  # noqa: ANN401
        await clients.check(name, context)
        return await handle(request, context)

    async def generate(request: Any, context: _Context) -> AsyncIterator[Any]:  # noqa: ANN401
        await clients.check(name, context)
        async for response in handle(request, context):
            yield response

    return generate if inspect.isasyncgenfunction(handle) else answer
