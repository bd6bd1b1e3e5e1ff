"""Reflection tells both versions' clients about services, and about the types of errors."""

import contextlib
import gc
import weakref

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from protos.pagestream.router.v1 import router_pb2
from servicekit.handlers import Handlers, RefusalLog
from servicekit.reflection import V1ALPHA, v1

ROUTER = router_pb2.DESCRIPTOR.services_by_name["RouterService"]
VERSIONS = pytest.mark.parametrize("service", [V1ALPHA, v1()], ids=lambda one: one.full_name)


class Nothing:
    """A servicer whose methods nobody calls."""

    def __getattr__(self, name):
        async def method(request, context):
            raise AssertionError(name)

        return method


@contextlib.asynccontextmanager
async def reflecting(service):
    """Yields what asks a server with reflection: fields of a request to an answer."""
    server = grpc.aio.server()
    handlers = Handlers(server, domain="test", refusals=RefusalLog())
    handlers.add(ROUTER, Nothing())
    handlers.add_reflection()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    [method] = service.methods
    request_type, answer_type = map(GetMessageClass, (method.input_type, method.output_type))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(
            f"/{service.full_name}/{method.name}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=answer_type.FromString,
        )(timeout=10)

        async def ask(**fields):
            await call.write(request_type(**fields))
            return await call.read()

        try:
            yield ask
        finally:
            call.cancel()
            await server.stop(None)


def test_classes_of_messages_outlive_a_server():
    def classes():
        types = v1().file.message_types_by_name.values()
        return [weakref.ref(GetMessageClass(message_type)) for message_type in types]

    before = classes()
    gc.collect()

    assert all(made() is not None for made in before)
    assert classes() == before


def files(answer):
    """Returns the files of an answer, by their names."""
    content = answer.file_descriptor_response.file_descriptor_proto
    protos = [FileDescriptorProto.FromString(one) for one in content]
    return {proto.name: proto for proto in protos}


@VERSIONS
async def test_services_and_both_versions_are_listed(service):
    async with reflecting(service) as ask:
        answer = await ask(list_services="")

    names = {one.name for one in answer.list_services_response.service}
    assert names == {ROUTER.full_name, V1ALPHA.full_name, v1().full_name}


@VERSIONS
@pytest.mark.parametrize(
    "symbol", ["google.rpc.Status", "google.rpc.ErrorInfo", "google.rpc.RetryInfo"]
)
async def test_types_of_errors_are_described(service, symbol):
    async with reflecting(service) as ask:
        answer = await ask(file_containing_symbol=symbol)
        other = await ask(file_by_filename="google/rpc/error_details.proto")

    package, _, name = symbol.rpartition(".")
    described = {
        (proto.package, message.name)
        for proto in files(answer).values()
        for message in proto.message_type
    }
    assert (package, name) in described
    assert "google/rpc/error_details.proto" in files(other)


@VERSIONS
async def test_each_version_describes_itself_and_the_service(service):
    async with reflecting(service) as ask:
        for name in (service.full_name, ROUTER.full_name):
            answer = await ask(file_containing_symbol=name)
            services = {
                f"{proto.package}.{one.name}"
                for proto in files(answer).values()
                for one in proto.service
            }
            assert name in services
        # What is asked comes back in the answer, in the type of this version.
        assert answer.original_request.file_containing_symbol == ROUTER.full_name
        unknown = await ask(file_containing_symbol="no.such.Type")

    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@VERSIONS
async def test_request_beyond_a_bound_is_refused(service):
    async with reflecting(service) as ask:
        with pytest.raises(grpc.aio.AioRpcError, match="file_containing_symbol has 5000 bytes"):
            await ask(file_containing_symbol="x" * 5000)
