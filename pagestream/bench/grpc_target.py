"""A router by gRPC."""

import itertools
from collections.abc import AsyncGenerator

import grpc

from pagestream.bench.options import WorkloadOptions
from pagestream.bench.results import Usage
from pagestream.bench.target import Model, RequestFailed
from pagestream.bench.workload import Request
from pagestream.connection import Connection
from pagestream.errors import CommandFailed
from pagestream.router_client import CALL_SECONDS, describe, reason_of
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc


class GrpcTarget:
    """A router by gRPC, over some connections that take turns."""

    def __init__(
        self,
        address: str,
        connection: Connection,
        num_connections: int,
        options: WorkloadOptions,
    ) -> None:
        self._address = address
        self._connection = connection
        self._options = options
        self._channels = [connection.aio_channel(address) for _ in range(num_connections)]
        stubs = [
            router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
            for channel in self._channels
        ]
        self._turns = itertools.cycle(stubs)

    async def __aenter__(self) -> "GrpcTarget":
        return self

    async def __aexit__(self, *error: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def models(self) -> list[Model]:
        """Returns the models."""
        try:
            response = await next(self._turns).ListModels(
                router_pb2.ListModelsRequest(),
                timeout=CALL_SECONDS,
                metadata=self._connection.metadata,
            )
        except grpc.RpcError as error:
            raise CommandFailed(describe(self._address, error, self._connection.advice)) from None
        return [Model(model.name, model.max_model_length_tokens) for model in response.models]

    async def ask(self, model: str, request: Request, usage: Usage) -> AsyncGenerator[int, None]:
        """Sends a request and yields the new tokens of each message."""
        message = router_pb2.GenerateRequest(
            model=model,
            token_ids=router_pb2.TokenIds(ids=request.prompt),
            sampling_params=router_pb2.SamplingParams(
                max_tokens=request.max_tokens,
                temperature=self._options.temperature,
                seed=request.seed,
                ignore_eos=self._options.ignore_eos,
            ),
        )
        call = next(self._turns).Generate(message, metadata=self._connection.metadata)
        has_finished = False
        try:
            async for response in call:
                if response.HasField("admission"):
                    usage.num_prompt_tokens = response.admission.prompt_token_count
                    usage.num_cached_tokens = response.admission.cached_token_count
                has_finished = has_finished or response.HasField("finish")
                if response.token_ids:
                    yield len(response.token_ids)
        except grpc.RpcError as error:
            raise RequestFailed(reason_of(error)) from None
        finally:
            call.cancel()
        if not has_finished:
            raise RequestFailed("NO_FINISH")
