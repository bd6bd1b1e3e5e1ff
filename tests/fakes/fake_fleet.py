"""A fleet of one model for tests of what stands above the fleet: events as the test puts them."""

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import AsyncGenerator

from protos.wire.sampling_params import SamplingParams
from router.errors import RequestError, UnknownModel
from router.types.engine_events import (
    Admitted,
    EngineEvent,
    Finished,
    FinishReason,
    TokenRequest,
    Tokens,
)
from router.types.engine_state import (
    EngineLoad,
    EngineSnapshot,
    EngineState,
    ModelInfo,
    ModelSnapshot,
)
from tests.fakes import small_tokenizer

ENGINE = "10.0.0.1:50051"
BASIC_PARAMS = frozenset({"temperature", "max_tokens", "ignore_eos", "stop_token_ids", "seed"})
ALL_PARAMS = frozenset(field.name for field in dataclasses.fields(SamplingParams))


def model_info(**changes) -> ModelInfo:
    values = {
        "name": "small",
        "architecture": "FakeForCausalLM",
        "fingerprint": "f" * 32,
        "vocab_size": 600,
        "max_model_len": 128,
        "block_size": 16,
        "block_hash_scheme": "",
        "eos_token_ids": frozenset({1}),
        "tokenizer_sha256": "a" * 64,
        "epoch": 1,
        "num_blocks": 8,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 2048,
        "supported_params": BASIC_PARAMS,
    }
    return ModelInfo(**{**values, **changes})


class FakeFleet:
    """Serves what is put into `events`; an exception there is raised.

    A request with a sample index gets what was put for this index.

    Attributes:
        requests: What was asked, in order.
        num_open: Requests under way; a closed generator counts no more.
        is_asked: Set by each request.
    """

    def __init__(self, model: ModelInfo | None = None) -> None:
        self.model = model or model_info()
        self.files = small_tokenizer.files()
        self.events: asyncio.Queue[EngineEvent | Exception] = asyncio.Queue()
        self.sample_events: dict[int | None, asyncio.Queue[EngineEvent | Exception]] = defaultdict(
            asyncio.Queue, {None: self.events}
        )
        self.requests: list[TokenRequest] = []
        self.num_open = 0
        self.is_asked = asyncio.Event()
        self.num_fetches = 0
        self.error: RequestError | None = None

    def put(self, *events: EngineEvent | Exception, index: int | None = None) -> None:
        for event in events:
            self.sample_events[index].put_nowait(event)

    def answer(
        self, *chunks: list[int], stop_token_id: int | None = None, index: int | None = None
    ) -> None:
        """Puts a whole answer, of which no event comes together with another."""
        self.put(Admitted(engine=ENGINE, num_cached_tokens=16, seed=7), index=index)
        self.put(*(Tokens(token_ids=chunk) for chunk in chunks), index=index)
        reason = FinishReason.LENGTH if stop_token_id is None else FinishReason.STOP
        self.put(Finished(reason=reason, stop_token_id=stop_token_id), index=index)

    def model_info(self, name: str) -> ModelInfo:
        if self.error:
            raise self.error
        if name not in ("", self.model.name):
            raise UnknownModel(f'model "{name}" is not served', {"model": name})
        return self.model

    def models(self) -> list[ModelSnapshot]:
        return [ModelSnapshot(info=self.model, num_serving_engines=1)]

    def engines(self) -> list[EngineSnapshot]:
        return [
            EngineSnapshot(
                address=ENGINE,
                state=EngineState.SERVING,
                model=self.model,
                load=EngineLoad(state=EngineState.SERVING, num_running=3),
                num_in_flight=self.num_open,
                num_in_flight_prefill_tokens=0,
                num_indexed_blocks=5,
                cache_event_age=1.0,
            )
        ]

    async def fetch_tokenizer(self, model: ModelInfo) -> dict[str, bytes]:
        self.num_fetches += 1
        return self.files

    async def generate(self, request: TokenRequest) -> AsyncGenerator[EngineEvent, None]:
        self.requests.append(request)
        self.is_asked.set()
        self.num_open += 1
        try:
            while True:
                event = await self.sample_events[request.sampling_params.sample_index].get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.num_open -= 1
