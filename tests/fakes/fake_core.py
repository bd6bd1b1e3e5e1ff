"""What a fake engine does between its calls: the product's core, with simulated steps."""

import asyncio
import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine_service.config import SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.limits import Limits
from engine_service.core.progress import SchedulerStatistics
from engine_service.core.types import (
    Admission,
    EngineInfo,
    Finish,
    FinishReason,
    Request,
    StepOutput,
    StepResult,
)
from engine_service.errors import DOMAIN, RequestError
from engine_service.server.convert import fill_logprobs, fill_prompt_logprobs, to_request
from engine_service.server.output_stream import PromptLogprobs
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash, status
from protos.wire.sampling_params import SUPPORTED_PARAMS, SamplingParams
from protos.wire.status import ErrorStatus, Reason
from servicekit.status import to_error_status
from tests.fakes.hash_executor import HashExecutor, TokenStream

if TYPE_CHECKING:
    from engine_service.core.logprobs import StepLogprobs

_NOTICE_SECONDS = 0.1
"""How late an engine may tell its load."""
_FINISH_REASONS = {
    FinishReason.STOP: engine_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: engine_pb2.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeEngineConfig:
    """What the engine pretends to be; times are seconds and may be 0."""

    model_name: str = "fake"
    fingerprint: str = "f" * 32
    vocab_size: int = 1000
    max_model_len: int = 4096
    block_size: int = 16
    block_hash_scheme: str = block_hash.SCHEME
    num_blocks: int = 1024
    max_num_seqs: int = 64
    max_waiting: int = 1024
    max_num_batched_tokens: int = 2048
    prefill_tokens_per_second: float = 0.0
    """0: a prompt costs no time."""
    decode_step_seconds: float = 0.0
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a request that names none; never generated."""
    tokenizer: Path | None = None
    supported_params: frozenset[str] = frozenset(SUPPORTED_PARAMS)
    """A request that sets another is refused, as by an older engine, even if its value is neutral.
    """
    max_logprobs: int = 20
    default_sampling_params: SamplingParams = field(default_factory=SamplingParams)
    delta_history: int = 1024
    """Cache changes kept for watchers that resume."""

    @property
    def info(self) -> EngineInfo:
        """What a start-up would have learnt."""
        return EngineInfo(
            model_name=self.model_name,
            architecture="FakeForCausalLM",
            model_fingerprint=self.fingerprint,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            eos_token_ids=frozenset(self.eos_token_ids),
            tensor_parallel_size=1,
            dtype="none",
            device="cpu",
            max_logprobs=self.max_logprobs,
            default_sampling_params=self.default_sampling_params,
        )


def expected_tokens(
    prompt_token_ids: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    config: FakeEngineConfig | None = None,
) -> list[int]:
    """Returns the tokens that a prompt yields; `seed` is 0 at temperature 0."""
    config = config or FakeEngineConfig()
    stream = TokenStream(seed, prompt_token_ids)
    return [stream.draw(config.vocab_size, config.eos_token_ids) for _ in range(count)]


class Refused(Exception):
    """A request, or a call, that the fake engine does not serve."""

    def __init__(self, reason: Reason, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status.error_status(reason, message, domain=DOMAIN, retry_after=retry_after)


class Sink:
    """What one call has not sent yet; steps merge here while its reader is behind."""

    def __init__(self) -> None:
        self.requests: dict[int, OpenRequest] = {}
        """By handle."""
        self.tokens: dict[int, array[int]] = {}
        self.logprobs: dict[int, StepLogprobs] = {}
        self.message = engine_pb2.GenerateManyResponse()
        self.closed = False
        self.error: Refused | None = None
        """What the call ends with, if it does not end well."""
        self._ready = asyncio.Event()

    def fail(self, error: Refused) -> None:
        self.error = error
        self.closed = True
        self.wake()

    def wake(self) -> None:
        self._ready.set()

    async def take(self) -> engine_pb2.GenerateManyResponse | None:
        await self._ready.wait()
        self._ready.clear()
        if self.closed:
            return None
        message, self.message = self.message, engine_pb2.GenerateManyResponse()
        tokens, self.tokens = self.tokens, {}
        message.handles.extend(tokens)
        message.token_counts.extend(map(len, tokens.values()))
        for token_ids in tokens.values():
            message.token_ids.extend(token_ids)
        logprobs, self.logprobs = self.logprobs, {}
        for handle, rows in logprobs.items():
            fill_logprobs(message.logprobs.add(handle=handle).logprobs, rows)
        return message


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request whose end was not told yet, and who waits for it."""

    request_id: int
    sink: Sink
    handle: int
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class CacheLog:
    """The prefix cache as its watchers see it."""

    history: deque[tuple[int, list[int], list[int]]]
    epoch: int
    sequence_number: int = 0
    blocks: dict[int, None] = field(default_factory=dict)
    """Hashes of the blocks that are held."""

    def store(self, hashes: Iterable[int]) -> None:
        """Tells watchers of blocks, whether or not the pool holds them."""
        self.change([value for value in hashes if value not in self.blocks], [])

    def change(self, stored: list[int], removed: list[int]) -> None:
        """Takes in a change."""
        if stored or removed:
            self.blocks.update(dict.fromkeys(stored))
            for value in removed:
                self.blocks.pop(value, None)
            self.sequence_number += 1
            self.history.append((self.sequence_number, stored, removed))


class Core(Protocol):
    """What a fake engine steps: the product's core, or in a benchmark something leaner."""

    def add(self, request: Request) -> None:
        """Takes a request; raises RequestError if it can never be served."""

    def cancel(self, request_id: int) -> None:
        """Ends a request without a word; one that is not open is passed over."""

    def step(self) -> StepOutput:
        """Does a step; some request is open."""

    def step_seconds(self) -> float:
        """Returns how long to wait until the outcome of the last step is told."""

    def statistics(self) -> SchedulerStatistics:
        """Returns what waits and what runs."""

    def num_free_blocks(self) -> int:
        """Returns how many blocks nobody owns."""

    def forget_cache(self) -> None:
        """Makes no block findable, and tells nothing of it."""


class SimulatedCore(EngineCore[StepResult]):
    """The product's core, scheduler and pool; only the model and its time are made up."""

    def __init__(self, config: FakeEngineConfig) -> None:
        self._hash_executor = HashExecutor(
            vocab_size=config.vocab_size,
            eos_token_ids=config.eos_token_ids,
            prefill_tokens_per_second=config.prefill_tokens_per_second,
            decode_step_seconds=config.decode_step_seconds,
        )
        options = SchedulerOptions(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_steps_in_flight=1,
        )
        super().__init__(config.info, options, self._hash_executor)

    def step_seconds(self) -> float:
        """Returns what the last step would have taken on a device."""
        return self._hash_executor.step_seconds

    def statistics(self) -> SchedulerStatistics:
        """Returns what waits and what runs."""
        return self.scheduler.statistics()

    def num_free_blocks(self) -> int:
        """Returns how many blocks nobody owns."""
        return self.scheduler.pool.num_free_blocks

    def forget_cache(self) -> None:
        """Makes no block findable, and tells nothing of it."""
        pool = self.scheduler.pool
        pool.forget(array("Q", pool.findable_hashes()))
        pool.take_delta()


class FakeCore:
    """The engine below its calls.

    Attributes:
        core: Made anew with each start.
        submissions: The newest submissions, for tests to look at.
        cache: The prefix cache as told; `cache.epoch` changes with each start.
    """

    def __init__(self, config: FakeEngineConfig) -> None:
        self.config = config
        self.submissions: deque[engine_pb2.Submission] = deque(maxlen=1000)
        self._changed = asyncio.Event()
        self._limits = Limits.from_info(config.info)
        self._notice: asyncio.TimerHandle | None = None
        self._request_ids = itertools.count()
        self.reset(epoch=1)

    def make_core(self) -> Core:
        """Returns what a new process would step."""
        return SimulatedCore(self.config)

    def reset(self, epoch: int) -> None:
        """Forgets all requests, the cache and every fault, as a new process would."""
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        self.core = self.make_core()
        self.cache = CacheLog(history=deque(maxlen=self.config.delta_history), epoch=epoch)
        self.state = engine_pb2.ENGINE_STATE_SERVING
        self._requests: dict[int, OpenRequest] = {}
        self._sinks: set[Sink] = set()
        self._work = asyncio.Event()
        self._refusal: Refused | None = None
        self._stalled = False
        self._num_dropped_deltas = 0
        self._tokens_to_live = math.inf

    @property
    def num_running(self) -> int:
        return len(self._requests) - self.num_waiting

    @property
    def num_waiting(self) -> int:
        return self.core.statistics().num_waiting

    @property
    def num_free_blocks(self) -> int:
        return self.core.num_free_blocks()

    async def wait_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Waits until a condition on the engine holds; looks after each change of the engine."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self._changed.wait()

    def _submit(self, sink: Sink, submission: engine_pb2.Submission) -> None:
        self.submissions.append(submission)
        request_id = next(self._request_ids)
        try:
            self._check()
            self._check_params(submission.request.sampling_params)
            defaults = self.config.default_sampling_params
            self.core.add(to_request(submission.request, request_id, self._limits, defaults))
        except Refused as error:
            self._fail(sink, submission.handle, error.status)
            return
        except RequestError as error:
            self._fail(sink, submission.handle, to_error_status(error))
            return
        request = OpenRequest(request_id, sink, submission.handle)
        self._requests[request_id] = sink.requests[submission.handle] = request
        if submission.HasField("timeout"):
            seconds = submission.timeout.ToTimedelta().total_seconds()
            loop = asyncio.get_running_loop()
            request.timer = loop.call_later(seconds, self._expire, request, seconds)
        self._work.set()
        self._notify()

    def _check(self) -> None:
        if self.state == engine_pb2.ENGINE_STATE_DRAINING:
            raise Refused(Reason.DRAINING, "the engine is draining")
        if self._refusal:
            raise self._refusal
        if self.num_waiting >= self.config.max_waiting:
            raise Refused(Reason.QUEUE_FULL, f"{self.config.max_waiting} requests wait", 1.0)

    def _check_params(self, params: engine_pb2.SamplingParams) -> None:
        for one, _ in params.ListFields():
            if one.name not in self.config.supported_params:
                text = f"sampling_params.{one.name} is not supported"
                raise Refused(Reason.UNSUPPORTED_PARAMETER, text)

    def _expire(self, request: OpenRequest, seconds: float) -> None:
        self._cancel(request)
        error = Refused(Reason.DEADLINE_EXCEEDED, f"timeout of {seconds} s passed")
        self._fail(request.sink, request.handle, error.status)

    def _fail(self, sink: Sink, handle: int, error: ErrorStatus) -> None:
        packed = engine_pb2.RequestError(
            code=error.code, message=error.message, details=status.pack_details(error)
        )
        sink.message.failures.add(handle=handle, error=packed)
        sink.wake()
        self._notify()

    def _cancel(self, request: OpenRequest) -> None:
        self.core.cancel(request.request_id)
        self._forget(request)

    def _forget(self, request: OpenRequest) -> None:
        # An engine that restarts has forgotten all of them already.
        self._requests.pop(request.request_id, None)
        request.sink.requests.pop(request.handle, None)
        if request.timer:
            request.timer.cancel()

    def _close(self, sink: Sink) -> None:
        self._sinks.discard(sink)
        for request in list(sink.requests.values()):
            self._cancel(request)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _publish_soon(self) -> None:
        """Tells the load as late as an engine may, unless a step tells it before."""
        self._notify()
        if self._notice is None:
            loop = asyncio.get_running_loop()
            self._notice = loop.call_later(_NOTICE_SECONDS, self._publish)

    def _publish(self) -> None:
        """Tells every router the load, and watchers that something changed."""
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        step = self.config.decode_step_seconds
        statistics = self.core.statistics()
        num_running = len(self._requests) - statistics.num_waiting
        load = engine_pb2.EngineLoad(
            state=self.state,
            running_count=num_running,
            waiting_count=statistics.num_waiting,
            waiting_prefill_token_count=statistics.num_waiting_prefill_tokens,
            free_block_count=self.num_free_blocks,
            total_block_count=self.config.num_blocks,
            prefill_tokens_per_second=self.config.prefill_tokens_per_second,
            decode_tokens_per_second=num_running / step if step else 0.0,
        )
        for sink in self._sinks:
            sink.message.load.CopyFrom(load)
            sink.wake()
        self._notify()

    async def _run(self) -> None:
        """Steps until the fault `die_after` strikes."""
        while True:
            while self._stalled or not self._requests:
                self._work.clear()
                await self._work.wait()
            output = self.core.step()
            await asyncio.sleep(self.core.step_seconds())
            if self._tokens_to_live <= 0:
                return
            self._tell(output)
            self._publish()

    def _tell(self, output: StepOutput) -> None:
        """Brings a step's outcome to those who still wait for it."""
        requests = self._requests
        for admission in output.admissions:
            if request := requests.get(admission.request_id):
                request.sink.message.admissions.add(
                    handle=request.handle, admission=_from_admission(admission)
                )
        end = 0
        for request_id, count in zip(output.request_ids, output.token_counts, strict=True):
            start, end = end, end + count
            if request := requests.get(request_id):
                waiting = request.sink.tokens.get(request.handle)
                if waiting is None:
                    request.sink.tokens[request.handle] = output.token_ids[start:end]
                else:
                    waiting += output.token_ids[start:end]
                request.sink.wake()
        self._tell_logprobs(output)
        self._tokens_to_live -= end
        for finish in output.finishes:
            if request := requests.get(finish.request_id):
                request.sink.message.finishes.add(
                    handle=request.handle, finish=_from_finish(finish)
                )
                request.sink.wake()
                self._forget(request)
        self.cache.change(list(output.cache_delta.stored), list(output.cache_delta.removed))

    def _tell_logprobs(self, output: StepOutput) -> None:
        for request_id, position, rows in output.prompt_logprobs or ():
            if request := self._requests.get(request_id):
                part = request.sink.message.prompt_logprobs.add(handle=request.handle)
                prompt = PromptLogprobs(first_position=position, logprobs=rows)
                fill_prompt_logprobs(part.prompt_logprobs, prompt)
                request.sink.wake()
        for request_id, _, rows in output.logprobs or ():
            if request := self._requests.get(request_id):
                waiting = request.sink.logprobs.setdefault(request.handle, rows)
                if waiting is not rows:
                    waiting.extend(rows)


def _from_admission(admission: Admission) -> engine_pb2.Admission:
    return engine_pb2.Admission(cached_token_count=admission.num_cached_tokens, seed=admission.seed)


def _from_finish(finish: Finish) -> engine_pb2.Finish:
    return engine_pb2.Finish(
        reason=_FINISH_REASONS[finish.reason], stop_token_id=finish.stop_token_id
    )
