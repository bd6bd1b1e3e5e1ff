"""gRPC reflection in both versions, which differ in their name only.

grpcio has the older one. The newer one is described from it, and its messages, whose bytes are the
same, are answered by it.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass, GetMessageClassesForFiles

# Clients ask reflection for the types of an error's details, so they have to be in the pool.
from google.rpc import error_details_pb2 as error_details_pb2
from google.rpc import status_pb2 as status_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA: ServiceDescriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


_MESSAGES: dict[str, type[Message]] = {}
"""The classes of version 1, by name, kept as a generated module keeps its own. Otherwise they are
collected and made anew for each server, and now and then the process crashed where one was made."""


@cache
def v1() -> ServiceDescriptor:
    """Returns the description of version 1, which it puts into the pool, for the process's life."""
    older = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(older)
    text = text_format.MessageToString(older).replace("v1alpha", "v1")
    newer = text_format.Parse(text, FileDescriptorProto())
    pool = descriptor_pool.Default()
    pool.Add(newer)
    _MESSAGES.update(GetMessageClassesForFiles([newer.name], pool))
    service: ServiceDescriptor = pool.FindFileByName(newer.name).services_by_name[V1ALPHA.name]
    return service


class ReflectionV1:
    """Tells about services and their types in version 1."""

    def __init__(self, names: Sequence[str]) -> None:
        self._older = reflection.aio.ReflectionServicer(names)
        [method] = v1().methods
        self._response = GetMessageClass(method.output_type)

    async def ServerReflectionInfo(
        self,
        requests: AsyncIterable[Any],
        context: Any,  # noqa: ANN401
    ) -> AsyncIterator[Any]:
        """Answers each request."""
        async for response in self._older.ServerReflectionInfo(_older(requests), context):
            yield self._response.FromString(response.SerializeToString())


async def _older(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield reflection_pb2.ServerReflectionRequest.FromString(request.SerializeToString())
