"""What a fake engine does between its calls: admission, simulated steps, a prefix cache."""

import asyncio
import math
import secrets
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash, status
from protos.wire.status import Reason

DOMAIN = "pagestream.engine.v1"
SUPPORTED = ("temperature", "max_tokens", "ignore_eos", "stop_token_ids", "seed")


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
    """Blocks of the pool, and of the simulated prefix cache."""
    max_num_seqs: int = 64
    max_waiting: int = 1024
    max_num_batched_tokens: int = 2048
    prefill_tokens_per_second: float = 0.0
    """0: a prompt costs no time."""
    decode_step_seconds: float = 0.0
    eos_token_ids: tuple[int, ...] = ()
    eos_after: int | None = None
    """Generated tokens after which the first end-of-sequence token comes; None: never."""
    tokenizer: Path | None = None
    delta_history: int = 1024
    """Cache changes kept for watchers that resume."""


def expected_tokens(
    prompt_token_ids: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    config: FakeEngineConfig | None = None,
) -> list[int]:
    """Returns the tokens that a prompt yields; `seed` is 0 at temperature 0."""
    config = config or FakeEngineConfig()
    hasher = _hasher(seed, prompt_token_ids)
    return [_draw(hasher, config) for _ in range(count)]


def _hasher(seed: int, token_ids: Sequence[int]) -> "xxhash.xxh3_64":
    return xxhash.xxh3_64(array("q", [seed]).tobytes() + array("i", token_ids).tobytes())


def _draw(hasher: "xxhash.xxh3_64", config: FakeEngineConfig) -> int:
    token = hasher.intdigest() % config.vocab_size
    while token in config.eos_token_ids:
        token = (token + 1) % config.vocab_size
    hasher.update(array("i", [token]).tobytes())
    return token


class Refused(Exception):
    def __init__(self, reason: Reason, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status.error_status(reason, message, domain=DOMAIN, retry_after=retry_after)


class Sink:
    """What one call has not sent yet; steps merge here while its reader is behind."""

    def __init__(self) -> None:
        self.sequences: dict[int, RunningSequence] = {}
        self.tokens: dict[int, list[int]] = {}
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
        return message


@dataclass(slots=True, eq=False, kw_only=True)
class RunningSequence:
    sink: Sink
    handle: int
    seed: int
    tokens: "array[int]"
    num_prompt: int
    max_tokens: int
    stop: frozenset[int]
    ignore_eos: bool
    hasher: "xxhash.xxh3_64"
    digests: list[bytes]
    """Of the full blocks; a parent for those to come."""
    root: bytes
    num_blocks: int
    num_computed: int = 0
    num_stored: int = 0
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Cache:
    """The prefix cache as its watchers see it: block hashes, oldest use first."""

    capacity: int
    history: deque[tuple[int, list[int], list[int]]]
    epoch: int
    sequence_number: int = 0
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def hit(self, hashes: Sequence[int]) -> int:
        for index, value in enumerate(hashes):
            if value not in self.blocks:
                return index
            self.blocks.move_to_end(value)
        return len(hashes)

    def store(self, hashes: Sequence[int]) -> None:
        stored = [value for value in hashes if value not in self.blocks]
        self.blocks.update(dict.fromkeys(stored))
        excess = max(0, len(self.blocks) - self.capacity)
        removed = [self.blocks.popitem(last=False)[0] for _ in range(excess)]
        self._log([value for value in stored if value in self.blocks], removed)

    def evict(self, hashes: Sequence[int]) -> None:
        for value in hashes:
            del self.blocks[value]
        self._log([], list(hashes))

    def _log(self, stored: list[int], removed: list[int]) -> None:
        if stored or removed:
            self.sequence_number += 1
            self.history.append((self.sequence_number, stored, removed))


class FakeCore:
    """The engine below its calls.

    Attributes:
        submissions: The newest submissions, for tests to look at.
        cache: The simulated prefix cache; `cache.epoch` changes with each start.
    """

    def __init__(self, config: FakeEngineConfig) -> None:
        self.config = config
        self.submissions: deque[engine_pb2.Submission] = deque(maxlen=1000)
        self._changed = asyncio.Event()
        self.reset(epoch=1)

    def reset(self, epoch: int) -> None:
        """Forgets all requests, the cache and every fault, as a new process would."""
        history = deque(maxlen=self.config.delta_history)
        self.cache = Cache(capacity=self.config.num_blocks, history=history, epoch=epoch)
        self.state = engine_pb2.ENGINE_STATE_SERVING
        self._waiting: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []
        self._sinks: set[Sink] = set()
        self._work = asyncio.Event()
        self._refusal: Refused | None = None
        self._stalled = False
        self._num_dropped_deltas = 0
        self._tokens_to_live = math.inf

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_free_blocks(self) -> int:
        return self.config.num_blocks - sum(seq.num_blocks for seq in self._running)

    async def wait_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Waits until a condition on the engine holds; looks after each change of the engine."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self._changed.wait()

    def _submit(self, sink: Sink, submission: engine_pb2.Submission) -> None:
        self.submissions.append(submission)
        try:
            sequence = self._sequence(sink, submission)
        except Refused as error:
            self._fail(sink, submission.handle, error)
            return
        sink.sequences[submission.handle] = sequence
        self._waiting.append(sequence)
        if finish := self._finish(sequence):
            # The tokens that it has end it.
            sink.message.finishes.add(handle=submission.handle, finish=finish)
            sink.wake()
            self._forget(sequence)
            return
        if submission.HasField("timeout"):
            seconds = submission.timeout.ToTimedelta().total_seconds()
            timer = asyncio.get_running_loop().call_later(seconds, self._expire, sequence, seconds)
            sequence.timer = timer
        self._work.set()
        self._notify()

    def _sequence(self, sink: Sink, submission: engine_pb2.Submission) -> RunningSequence:
        request, config = submission.request, self.config
        params = request.sampling_params
        num_prompt = len(request.prompt_token_ids)
        max_tokens = params.max_tokens or config.max_model_len - num_prompt
        self._check(request, num_prompt + max_tokens)
        seed = params.seed if params.HasField("seed") else secrets.randbits(32)
        tokens = array("i", request.prompt_token_ids)
        tokens.extend(request.resume_token_ids)
        root = block_hash.root_digest(config.fingerprint, cache_salt=request.cache_salt)
        is_greedy = params.HasField("temperature") and params.temperature == 0
        return RunningSequence(
            sink=sink,
            handle=submission.handle,
            seed=seed,
            tokens=tokens,
            num_prompt=num_prompt,
            max_tokens=max_tokens,
            stop=frozenset(params.stop_token_ids),
            ignore_eos=params.ignore_eos,
            hasher=_hasher(0 if is_greedy else seed, tokens),
            digests=block_hash.block_digests(root, tokens, config.block_size),
            root=root,
            num_blocks=-(-(num_prompt + max_tokens) // config.block_size),
        )

    def _check(self, request: engine_pb2.GenerateRequest, length: int) -> None:
        config, params = self.config, request.sampling_params
        if self.state == engine_pb2.ENGINE_STATE_DRAINING:
            raise Refused(Reason.DRAINING, "the engine is draining")
        if self._refusal:
            raise self._refusal
        if not request.prompt_token_ids:
            raise Refused(Reason.EMPTY_PROMPT, "prompt_token_ids is empty")
        if max(request.prompt_token_ids) >= config.vocab_size:
            raise Refused(Reason.TOKEN_OUT_OF_RANGE, f"a token ID is >= {config.vocab_size}")
        if length > min(config.max_model_len, config.num_blocks * config.block_size):
            raise Refused(Reason.PROMPT_TOO_LONG, f"{length} tokens > {config.max_model_len}")
        for descriptor, _ in params.ListFields():
            if descriptor.name not in SUPPORTED:
                message = f"{descriptor.name} is not supported"
                raise Refused(Reason.UNSUPPORTED_PARAMETER, message)
        if not 0 <= params.temperature <= 100:
            message = f"temperature is {params.temperature}, not from 0 to 100"
            raise Refused(Reason.BAD_SAMPLING_PARAMS, message)
        if len(self._waiting) >= config.max_waiting:
            raise Refused(Reason.QUEUE_FULL, f"{config.max_waiting} requests wait", 1.0)

    def _expire(self, sequence: RunningSequence, seconds: float) -> None:
        self._forget(sequence)
        error = Refused(Reason.DEADLINE_EXCEEDED, f"timeout of {seconds} s passed")
        self._fail(sequence.sink, sequence.handle, error)

    def _fail(self, sink: Sink, handle: int, error: Refused) -> None:
        packed = engine_pb2.RequestError(
            code=error.status.code,
            message=error.status.message,
            details=status.pack_details(error.status),
        )
        sink.message.failures.add(handle=handle, error=packed)
        sink.wake()
        self._notify()

    def _forget(self, sequence: RunningSequence) -> None:
        sequence.sink.sequences.pop(sequence.handle, None)
        if sequence.timer:
            sequence.timer.cancel()
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def _close(self, sink: Sink) -> None:
        self._sinks.discard(sink)
        for sequence in list(sink.sequences.values()):
            self._forget(sequence)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _publish(self) -> None:
        """Tells every router the load, and watchers that something changed."""
        sequences = (*self._waiting, *self._running)
        rate, step = self.config.prefill_tokens_per_second, self.config.decode_step_seconds
        load = engine_pb2.EngineLoad(
            state=self.state,
            running_count=len(self._running),
            waiting_count=len(self._waiting),
            waiting_prefill_token_count=sum(
                max(0, seq.num_prompt - seq.num_computed) for seq in sequences
            ),
            free_block_count=self.num_free_blocks,
            total_block_count=self.config.num_blocks,
            prefill_tokens_per_second=rate,
            decode_tokens_per_second=len(self._running) / step if step else 0.0,
        )
        for sink in self._sinks:
            sink.message.load.CopyFrom(load)
            sink.wake()
        self._notify()

    async def _run(self) -> None:
        """Steps until the fault `die_after` strikes."""
        while True:
            while self._stalled or not (self._running or self._waiting):
                self._work.clear()
                await self._work.wait()
            plan = self._schedule()
            await asyncio.sleep(self._seconds(plan))
            if self._tokens_to_live <= 0:
                return
            for sequence, num_tokens in plan:
                if sequence.handle in sequence.sink.sequences:
                    self._advance(sequence, num_tokens)
            self._publish()

    def _seconds(self, plan: list[tuple[RunningSequence, int]]) -> float:
        prefill = sum(count for seq, count in plan if seq.num_computed < seq.num_prompt)
        rate = self.config.prefill_tokens_per_second
        decodes = any(seq.num_computed >= seq.num_prompt for seq, _ in plan)
        return (prefill / rate if rate else 0.0) + self.config.decode_step_seconds * decodes

    def _schedule(self) -> list[tuple[RunningSequence, int]]:
        config = self.config
        while self._waiting and len(self._running) < config.max_num_seqs:
            if self._waiting[0].num_blocks > self.num_free_blocks:
                break
            self._admit(self._waiting.popleft())
        budget = config.max_num_batched_tokens
        plan = []
        for sequence in self._running:
            if count := min(budget, len(sequence.tokens) - sequence.num_computed):
                plan.append((sequence, count))
                budget -= count
        return plan

    def _admit(self, sequence: RunningSequence) -> None:
        size = self.config.block_size
        hashes = [block_hash.low_64_bits(digest) for digest in sequence.digests]
        # The last token is always computed: its logits are needed.
        num_hits = self.cache.hit(hashes[: (len(sequence.tokens) - 1) // size])
        sequence.num_computed = num_hits * size
        sequence.num_stored = num_hits
        self._running.append(sequence)
        admission = engine_pb2.Admission(
            cached_token_count=sequence.num_computed, seed=sequence.seed
        )
        sequence.sink.message.admissions.add(handle=sequence.handle, admission=admission)

    def _advance(self, sequence: RunningSequence, num_tokens: int) -> None:
        config, sink = self.config, sequence.sink
        sequence.num_computed += num_tokens
        self._store(sequence)
        if sequence.num_computed < len(sequence.tokens):
            return
        num_generated = len(sequence.tokens) - sequence.num_prompt
        is_eos = num_generated == config.eos_after and not sequence.ignore_eos
        token = config.eos_token_ids[0] if is_eos else _draw(sequence.hasher, config)
        sequence.tokens.append(token)
        sink.tokens.setdefault(sequence.handle, []).append(token)
        sink.wake()
        self._tokens_to_live -= 1
        if finish := self._finish(sequence):
            sink.message.finishes.add(handle=sequence.handle, finish=finish)
            self._forget(sequence)

    def _finish(self, sequence: RunningSequence) -> engine_pb2.Finish | None:
        """Returns why a sequence ends after its last token, or None."""
        num_generated = len(sequence.tokens) - sequence.num_prompt
        if not num_generated:
            return None
        last, eos = sequence.tokens[-1], self.config.eos_token_ids
        if last in sequence.stop or (last in eos and not sequence.ignore_eos):
            return engine_pb2.Finish(reason=engine_pb2.FINISH_REASON_STOP, stop_token_id=last)
        if num_generated >= sequence.max_tokens:
            return engine_pb2.Finish(reason=engine_pb2.FINISH_REASON_LENGTH)
        return None

    def _store(self, sequence: RunningSequence) -> None:
        size = self.config.block_size
        num_full = sequence.num_computed // size
        while len(sequence.digests) < num_full:
            parent = sequence.digests[-1] if sequence.digests else sequence.root
            start = len(sequence.digests) * size
            block = sequence.tokens[start : start + size]
            sequence.digests += block_hash.block_digests(parent, block, size)
        if num_full > sequence.num_stored:
            new = sequence.digests[sequence.num_stored : num_full]
            self.cache.store([block_hash.low_64_bits(digest) for digest in new])
            sequence.num_stored = num_full
