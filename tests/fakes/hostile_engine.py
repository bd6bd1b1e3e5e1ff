"""An engine that answers like a good one and then misbehaves, and the words for how it does.

`tests.fakes.hostile_modes` has the ways to misbehave.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from protos.pagestream.engine.v1 import engine_pb2 as pb
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig, expected_tokens
from tests.fakes.fake_logprobs import as_message, made_up_logprobs

STEP = pb.GenerateManyResponse
NUM_TOKENS = 12
"""That the requests of a test ask for."""
LENGTH, STOP = pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP
EXHAUSTED, INTERNAL, UNAVAILABLE = 8, 13, 14


@dataclass(frozen=True)
class End:
    """Ends the call with a status and trailers."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    details: str = "x"
    trailers: tuple[tuple[str, bytes], ...] = ()


Move = pb.GenerateManyResponse | End | float
"""A message, an end, or seconds to wait."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to misbehave.

    Attributes:
        name: Also of the model that it serves.
        answer: Moves that a handle and the right tokens make.
        describe: Changes the description of the model.
        begin: Changes the first message of the stream.
        watch: The messages of the cache watch, which goes on silently.
        transfer: The messages of the transfer of the tokenizer, which ends with them.
        detail: What the router says of the engine afterwards; empty if it may go on serving.
        kind: Of the fault that the router counts; empty if it counts none.
        log: What the router's log says of it.
        params: Sampling parameters of its requests, besides temperature and max_tokens.
        is_refusal: Whether a client may get the engine's error, as it does a good engine's.
        is_long: Whether it is for the long run only.
    """

    name: str
    answer: Callable[[int, list[int]], Iterable[Move]] | None = None
    describe: Callable[[pb.GetModelInfoResponse], Any] | None = None
    begin: Callable[[pb.GenerateManyResponse], Any] | None = None
    watch: Callable[[int], Iterator[pb.WatchCacheResponse]] | None = None
    transfer: Callable[[], Iterable[pb.GetTokenizerResponse | End]] | None = None
    detail: str = ""
    kind: str = ""
    log: str = ""
    params: Mapping[str, int] = field(default_factory=dict)
    is_refusal: bool = False
    is_long: bool = False


class HostileEngine(FakeEngine):
    """Serves the model of its mode's name, beside a good engine of the same."""

    def __init__(self, mode: Mode, config: FakeEngineConfig) -> None:
        super().__init__(config)
        self.mode = mode
        self.is_asked = asyncio.Event()
        self.is_asked_for_tokenizer = asyncio.Event()

    async def GetModelInfo(self, request, context):
        response = await super().GetModelInfo(request, context)
        if self.mode.describe is not None:
            self.mode.describe(response)
        return response

    async def GetTokenizer(self, request, context):
        self.is_asked_for_tokenizer.set()
        if self.mode.transfer is None:
            async for message in super().GetTokenizer(request, context):
                yield message
            return
        for move in self.mode.transfer():
            if isinstance(move, End):
                await _abort(context, move)
            yield move

    async def WatchCache(self, request, context):
        if self.mode.watch is None:
            async for message in super().WatchCache(request, context):
                yield message
            return
        await context.send_initial_metadata(())
        # Not before its test: a flood would disturb the others.
        await self.is_asked.wait()
        for message in self.mode.watch(self.cache.epoch):
            yield message
        await asyncio.Event().wait()

    async def GenerateMany(self, request_iterator, context):
        if self.mode.answer is None and self.mode.begin is None:
            async for message in super().GenerateMany(request_iterator, context):
                self.is_asked.set()
                yield message
            return
        first = self.identity()
        first.load.CopyFrom(load())
        if self.mode.begin is not None:
            self.mode.begin(first)
        yield first
        async for message in request_iterator:
            for submission in message.submissions:
                for move in self._moves(submission):
                    if isinstance(move, End):
                        await _abort(context, move)
                    elif isinstance(move, float):
                        await asyncio.sleep(move)
                    else:
                        yield move

    def _moves(self, submission) -> Iterable[Move]:
        asked = submission.request
        known = [*asked.prompt_token_ids, *asked.resume_token_ids]
        count = asked.sampling_params.max_tokens - len(asked.resume_token_ids)
        tokens = expected_tokens(known, count, config=self.config)
        if self.mode.answer is None:
            return honest(submission.handle, tokens)
        return self.mode.answer(submission.handle, tokens)


async def _abort(context, end: End) -> None:
    await context.abort(end.code, end.details, end.trailers)


def load(**fields: object) -> pb.EngineLoad:
    values = {"state": pb.ENGINE_STATE_SERVING, "total_block_count": 1000}
    values |= {"free_block_count": 1000, "prefill_tokens_per_second": 1e6}
    return pb.EngineLoad(**{**values, "decode_tokens_per_second": 1e6, **fields})


def admission(handle, num_cached=0, seed=7) -> STEP:
    step = STEP()
    told = pb.Admission(cached_token_count=num_cached, seed=seed)
    step.admissions.add(handle=handle, admission=told)
    return step


def tokens_of(handle, token_ids) -> STEP:
    return STEP(handles=[handle], token_counts=[len(token_ids)], token_ids=token_ids)


def with_logprobs(step, first_position, num_top=1, **changes) -> STEP:
    """Adds logprobs to the tokens of a step for one request; changes replace fields of these."""
    told = _logprobs(first_position, step.token_ids, num_top, changes)
    step.logprobs.add(handle=step.handles[0], logprobs=told)
    return step


def prompt_logprobs_of(handle, first_position, token_ids, num_top=1, **changes) -> STEP:
    step = STEP()
    told = _logprobs(first_position, token_ids, num_top, changes)
    of_prompt = pb.PromptLogprobs(first_position=first_position, logprobs=told)
    step.prompt_logprobs.add(handle=handle, prompt_logprobs=of_prompt)
    return step


def _logprobs(first_position, token_ids, num_top, changes) -> pb.Logprobs:
    told = as_message(made_up_logprobs(first_position, token_ids, num_top))
    for name, values in changes.items():
        told.ClearField(name)
        getattr(told, name).extend(values)
    return told


def finish(handle, reason=LENGTH, **fields) -> STEP:
    step = STEP()
    step.finishes.add(handle=handle, finish=pb.Finish(reason=reason, **fields))
    return step


def failure(handle, code, *details, message="evil") -> STEP:
    step = STEP()
    error = pb.RequestError(code=code, message=message, details=details)
    step.failures.add(handle=handle, error=error)
    return step


def packed(message) -> Packed:
    detail = Packed()
    detail.Pack(message)
    return detail


def info(reason, **metadata) -> Packed:
    return packed(ErrorInfo(reason=reason, domain="evil", metadata=metadata))


def retry(seconds, nanos=0) -> Packed:
    return packed(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))


def honest(handle, tokens) -> list[Move]:
    return [admission(handle), tokens_of(handle, tokens), finish(handle)]


def details_bin(*details: Packed) -> tuple[tuple[str, bytes], ...]:
    status = Status(code=UNAVAILABLE, message="x", details=details)
    return (("grpc-status-details-bin", status.SerializeToString()),)
