"""RouterService: check, call, map the error."""

from collections.abc import Sequence
from typing import Protocol

import grpc

from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from router.access.caller import Caller, until_revoked
from router.access.keyring import Keyring
from router.placement.policy import reference_costs
from router.request.pipeline import Pipeline
from router.request.slow_readers import READING, SlowReaders
from router.server import convert
from router.server.status import errors_to_status
from router.types.engine_state import EngineSnapshot, ModelSnapshot
from router.types.prompts import TokenPrompt

SERVICE = router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name

Context = grpc.aio.ServicerContext


class Listing(Protocol):
    """What the server lists of the fleet; tests list without one."""

    def models(self) -> Sequence[ModelSnapshot]:
        """Returns the models that can be asked for."""

    def engines(self) -> list[EngineSnapshot]:
        """Returns the engines, whatever their state."""


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Serves the pipeline to clients.

    Args:
        pipeline: Answers them.
        fleet: What the lists are of.
        slow_readers: Ends the answers that are not read; somebody must run it.
        keyring: The API keys of clients, or None if they need none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        fleet: Listing,
        slow_readers: SlowReaders,
        keyring: Keyring | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._slow_readers = slow_readers
        self._keyring = keyring

    async def Generate(
        self,
        request: router_pb2.GenerateRequest,
        context: "Context[router_pb2.GenerateRequest, router_pb2.GenerateResponse]",
    ) -> None:
        """Streams the continuation of one prompt; a cancelled call leaves its engine at once."""
        # Not a generator: what waits for the client must wait here, where it can be given up.
        async with errors_to_status(context, "Generate"):
            metadata = context.invocation_metadata() or ()
            caller = self._caller(metadata)
            generation = convert.to_generation_request(
                request, metadata, context.time_remaining(), caller
            )
            deltas = self._pipeline.generate(generation)
            async with until_revoked(caller), self._slow_readers.watch(deltas) as reader:
                async for delta in deltas:
                    response = convert.to_generate_response(delta)
                    reader.num_ticks = 0
                    await context.write(response)
                    reader.num_ticks = READING

    async def Tokenize(
        self,
        request: router_pb2.TokenizeRequest,
        context: "Context[router_pb2.TokenizeRequest, router_pb2.TokenizeResponse]",
    ) -> router_pb2.TokenizeResponse:
        """Returns the token IDs of a text or a conversation."""
        async with errors_to_status(context, "Tokenize"):
            caller = self._caller(context.invocation_metadata())
            prompt = convert.to_tokenize_prompt(request)
            token_ids = await self._pipeline.tokenize(
                request.model, prompt, num_bytes=request.ByteSize(), caller=caller
            )
            return convert.to_tokenize_response(token_ids)

    async def Detokenize(
        self,
        request: router_pb2.DetokenizeRequest,
        context: "Context[router_pb2.DetokenizeRequest, router_pb2.DetokenizeResponse]",
    ) -> router_pb2.DetokenizeResponse:
        """Returns the text of token IDs."""
        async with errors_to_status(context, "Detokenize"):
            caller = self._caller(context.invocation_metadata())
            text = await self._pipeline.detokenize(
                request.model,
                TokenPrompt(token_ids=convert.to_token_ids(request)),
                skip_special_tokens=request.skip_special_tokens,
                num_bytes=request.ByteSize(),
                caller=caller,
            )
            return convert.to_detokenize_response(text)

    async def ListModels(
        self,
        request: router_pb2.ListModelsRequest,
        context: "Context[router_pb2.ListModelsRequest, router_pb2.ListModelsResponse]",
    ) -> router_pb2.ListModelsResponse:
        """Returns the models that the client can ask for."""
        async with errors_to_status(context, "ListModels"):
            caller, models = self._caller(context.invocation_metadata()), self._fleet.models()
            if caller is not None:
                models = [model for model in models if caller.may_use(model.info.name)]
            return convert.to_list_models_response(models)

    async def ListEngines(
        self,
        request: router_pb2.ListEnginesRequest,
        context: "Context[router_pb2.ListEnginesRequest, router_pb2.ListEnginesResponse]",
    ) -> router_pb2.ListEnginesResponse:
        """Returns the engines with their state and load, as far as the client may use them."""
        async with errors_to_status(context, "ListEngines"):
            caller, engines = self._caller(context.invocation_metadata()), self._fleet.engines()
            if caller is not None:
                engines = [one for one in engines if caller.may_use(_model_name(one))]
            return convert.to_list_engines_response(engines, reference_costs(engines))

    def _caller(self, metadata: "convert.Metadata | None") -> Caller | None:
        """Returns who calls, if keys are needed."""
        return None if self._keyring is None else self._keyring.of_metadata(metadata)


def _model_name(engine: EngineSnapshot) -> str:
    return "" if engine.model is None else engine.model.name
