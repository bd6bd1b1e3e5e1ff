"""A client channel that parses responses within bounds and refuses them with our own errors."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from protos.wire.message_parser import Malformed, MessageParser
from servicekit.handlers import RefusalLog


class CheckedChannel:
    """A channel for the generated stub of one service.

    A refused message reaches the caller as None, like one that gRPC cannot parse. It is counted
    and logged here.

    Args:
        channel: The connection.
        service: The stub's service.
        peer: The server's address.
        refusals: Counts and logs the refused messages.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        service: ServiceDescriptor,
        peer: str,
        refusals: RefusalLog,
    ) -> None:
        self._service = service
        self._peer = peer
        self._refusals = refusals
        # The methods that a generated stub calls.
        self.unary_unary = self._checked(channel.unary_unary)
        self.unary_stream = self._checked(channel.unary_stream)
        self.stream_unary = self._checked(channel.stream_unary)
        self.stream_stream = self._checked(channel.stream_stream)

    def _checked(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: str, **options: Any) -> Any:  # noqa: ANN401
            return make(path, **{**options, "response_deserializer": self._parser(path)})

        return call

    def _parser(self, path: str) -> Callable[[bytes], Message | None]:
        method = self._service.methods_by_name[path.rpartition("/")[2]]
        name = f"{self._service.name}/{method.name}"
        parse = MessageParser(GetMessageClass(method.output_type))

        def parsed(data: bytes) -> Message | None:
            message = parse(data)
            if isinstance(message, Malformed):
                self._refusals.add(name, self._peer, message)
                return None
            return message

        return parsed
