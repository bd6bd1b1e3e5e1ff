"""The real EngineService over real gRPC without a model: tokens are hashes, time is simulated.

Each token is a hash of the seed and of all tokens before it, so that a lost, doubled or misplaced
token, a wrong resume or a wrong seed changes everything after it (`expected_tokens`). Batching,
chunked prefill and the prefix cache behave like an engine's; the methods under "faults" misbehave.

In a test:     `async with FakeEngine(FakeEngineConfig(block_size=4)) as engine: ... engine.address`
As a process:  `python -m tests.fakes.fake_engine --port 9000 --model-name fake --tokenizer DIR`
"""

import argparse
import asyncio
import hashlib
import logging
import math
import secrets
import signal
from array import array
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import xxhash
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire import block_hash, channel, status
from protos.wire.status import Reason

DOMAIN = "pagestream.engine.v1"
SERVICE = "pagestream.engine.v1.EngineService"
_SUPPORTED = ("temperature", "max_tokens", "ignore_eos", "stop_token_ids", "seed")
_CHUNK = 64 * 1024
_logger = logging.getLogger("fake_engine")


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


class _Refused(Exception):
    def __init__(self, reason: Reason, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status.error_status(reason, message, domain=DOMAIN, retry_after=retry_after)


class _Sink:
    """What one call has not sent yet; steps merge here while its reader is behind."""

    def __init__(self) -> None:
        self.sequences: dict[int, _Sequence] = {}
        self.tokens: dict[int, list[int]] = {}
        self.message = engine_pb2.GenerateManyResponse()
        self.closed = False
        self._ready = asyncio.Event()

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
class _Sequence:
    sink: _Sink
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
class _Cache:
    """The prefix cache as its watchers see it: block hashes, oldest use first."""

    capacity: int
    history: deque[tuple[int, list[int], list[int]]]
    epoch: int = field(default_factory=lambda: secrets.randbits(63) | 1)
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


class FakeEngine(engine_pb2_grpc.EngineServiceServicer):
    """One fake engine; an async context manager that serves while it is entered.

    Attributes:
        address: "host:port", kept over `restart`.
        submissions: The newest submissions, for tests to look at.
        cache: The simulated prefix cache; `cache.epoch` changes with each start.
    """

    def __init__(
        self, config: FakeEngineConfig | None = None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.config = config or FakeEngineConfig()
        self.address = f"{host}:{port}"
        self.submissions: deque[engine_pb2.Submission] = deque(maxlen=1000)
        self.num_watches = 0
        self.num_snapshots = 0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "FakeEngine":
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self.cache = _Cache(self.config.num_blocks, deque(maxlen=self.config.delta_history))
        self.state = engine_pb2.ENGINE_STATE_SERVING
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._sinks: set[_Sink] = set()
        self._work = asyncio.Event()
        self._refusal: _Refused | None = None
        self._stalled = False
        self._num_dropped_deltas = 0
        self._tokens_to_live = math.inf
        self._server = grpc.aio.server(options=channel.server_options())
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, self._server)
        self.health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        for service in ("", SERVICE):
            await self.health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._loop_task = asyncio.create_task(self._run(), name=f"fake engine {self.address}")

    async def stop(self, grace: float | None = None) -> None:
        """Ends all calls after `grace` seconds, or at once, as a killed process would."""
        await self._server.stop(grace)
        self._loop_task.cancel()
        await asyncio.wait([self._loop_task])
        if not self._loop_task.cancelled():
            self._loop_task.result()

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

    # Faults.

    async def restart(self) -> None:
        """Dies and comes back on the same port with an empty cache and a new epoch."""
        await self.stop()
        await self.start()

    def die_after(self, num_tokens: int) -> None:
        """Dies abruptly once this many more tokens were generated; 0 is with the next step."""
        self._tokens_to_live = num_tokens

    def refuse(self, reason: Reason | None, retry_after: float | None = None) -> None:
        """Refuses every new request for this reason; None takes them again."""
        message = f"the fake engine was told to refuse: {reason}"
        self._refusal = _Refused(reason, message, retry_after) if reason else None

    def stall(self) -> None:
        """Stops stepping while all connections stay up."""
        self._stalled = True

    def resume(self) -> None:
        """Ends a stall."""
        self._stalled = False
        self._work.set()

    async def drain(self) -> None:
        """Finishes what it has and refuses everything new."""
        self.state = engine_pb2.ENGINE_STATE_DRAINING
        await self.health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._publish()

    def evict_all(self) -> None:
        """Empties the prefix cache."""
        self.cache.evict(list(self.cache.blocks))
        self._notify()

    def drop_deltas(self, count: int) -> None:
        """Loses this many of the next cache changes on their way to the watchers."""
        self._num_dropped_deltas = count

    # The service.

    async def Generate(self, request, context):
        sink = _Sink()
        try:
            self._submit(sink, engine_pb2.Submission(request=request))
            while (message := await sink.take()) is not None:
                for failure in message.failures:
                    error = failure.error
                    unpacked = status.unpack(error.code, error.message, error.details)
                    reply = rpc_status.to_status(status.to_rpc_status(unpacked))
                    await context.abort_with_status(reply)
                response = engine_pb2.GenerateResponse(token_ids=message.token_ids)
                for admission in message.admissions:
                    response.admission.CopyFrom(admission.admission)
                for finish in message.finishes:
                    response.finish.CopyFrom(finish.finish)
                yield response
                if message.finishes:
                    return
        finally:
            self._close(sink)

    async def GenerateMany(self, request_iterator, context):
        sink = _Sink()
        self._sinks.add(sink)
        reader = asyncio.create_task(self._read(sink, request_iterator))
        try:
            self._publish()
            while (message := await sink.take()) is not None:
                yield message
        finally:
            reader.cancel()
            self._close(sink)
            await asyncio.wait([reader])
            if not reader.cancelled() and (error := reader.exception()):
                _logger.warning("stream lost error=%r", error)

    async def WatchCache(self, request, context):
        self.num_watches += 1
        cache = self.cache
        epoch, position = request.epoch, request.sequence_number
        while True:
            oldest = cache.history[0][0] if cache.history else cache.sequence_number + 1
            if epoch != cache.epoch or not oldest - 1 <= position <= cache.sequence_number:
                epoch, position = cache.epoch, cache.sequence_number
                self.num_snapshots += 1
                for message in self._snapshot():
                    yield message
            newer = [change for change in cache.history if change[0] > position]
            if newer:
                for number, stored, removed in newer:
                    position = number
                    if self._num_dropped_deltas:
                        self._num_dropped_deltas -= 1
                        continue
                    delta = engine_pb2.CacheDelta(
                        stored_block_hashes=stored, removed_block_hashes=removed
                    )
                    yield engine_pb2.WatchCacheResponse(
                        epoch=epoch, sequence_number=number, delta=delta
                    )
            elif position == cache.sequence_number:
                await self._changed.wait()

    def _snapshot(self) -> list[engine_pb2.WatchCacheResponse]:
        hashes = list(self.cache.blocks)
        starts = range(0, max(1, len(hashes)), _CHUNK)
        return [
            engine_pb2.WatchCacheResponse(
                epoch=self.cache.epoch,
                sequence_number=self.cache.sequence_number,
                snapshot=engine_pb2.CacheSnapshot(
                    block_hashes=hashes[start : start + _CHUNK],
                    first=start == 0,
                    last=start + _CHUNK >= len(hashes),
                ),
            )
            for start in starts
        ]

    async def GetModelInfo(self, request, context):
        config = self.config
        files = self._tokenizer_files()
        digest = hashlib.sha256(b"".join(n.encode() + b"\0" + c for n, c in files)).hexdigest()
        return engine_pb2.GetModelInfoResponse(
            model_name=config.model_name,
            architecture="FakeForCausalLM",
            model_fingerprint=config.fingerprint,
            vocabulary_size=config.vocab_size,
            max_model_length_tokens=config.max_model_len,
            block_size_tokens=config.block_size,
            block_hash_scheme=config.block_hash_scheme,
            eos_token_ids=config.eos_token_ids,
            epoch=self.cache.epoch,
            total_block_count=config.num_blocks,
            max_running_request_count=config.max_num_seqs,
            tensor_parallel_size=1,
            dtype="none",
            tokenizer_sha256=digest if files else "",
            supported_sampling_params=_SUPPORTED,
            engine_version="0",
        )

    async def GetTokenizer(self, request, context):
        files = self._tokenizer_files()
        if not files:
            error = _Refused(Reason.NO_TOKENIZER, "the fake engine has no tokenizer").status
            await context.abort_with_status(rpc_status.to_status(status.to_rpc_status(error)))
        for name, content in files:
            digest = hashlib.sha256(content).hexdigest()
            header = engine_pb2.TokenizerFile(name=name, size_bytes=len(content), sha256=digest)
            yield engine_pb2.GetTokenizerResponse(file=header)
            for start in range(0, len(content), _CHUNK):
                yield engine_pb2.GetTokenizerResponse(chunk=content[start : start + _CHUNK])

    def _tokenizer_files(self) -> list[tuple[str, bytes]]:
        folder = self.config.tokenizer
        paths = sorted(folder.iterdir()) if folder else []
        wanted = [path for path in paths if path.suffix in (".json", ".jinja", ".txt", ".model")]
        return [(path.name, path.read_bytes()) for path in wanted]

    # Admission, cancellation, the step.

    async def _read(
        self, sink: _Sink, messages: AsyncIterator[engine_pb2.GenerateManyRequest]
    ) -> None:
        async for message in messages:
            for submission in message.submissions:
                self._submit(sink, submission)
            for handle in message.cancelled_handles:
                if sequence := sink.sequences.get(handle):
                    self._forget(sequence)
            self._publish()
        sink.closed = True
        sink.wake()

    def _submit(self, sink: _Sink, submission: engine_pb2.Submission) -> None:
        self.submissions.append(submission)
        try:
            sequence = self._sequence(sink, submission)
        except _Refused as error:
            self._fail(sink, submission.handle, error)
            return
        sink.sequences[submission.handle] = sequence
        self._waiting.append(sequence)
        if submission.HasField("timeout"):
            seconds = submission.timeout.ToTimedelta().total_seconds()
            timer = asyncio.get_running_loop().call_later(seconds, self._expire, sequence, seconds)
            sequence.timer = timer
        self._work.set()
        self._notify()

    def _sequence(self, sink: _Sink, submission: engine_pb2.Submission) -> _Sequence:
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
        return _Sequence(
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
            raise _Refused(Reason.DRAINING, "the engine is draining")
        if self._refusal:
            raise self._refusal
        if not request.prompt_token_ids:
            raise _Refused(Reason.EMPTY_PROMPT, "prompt_token_ids is empty")
        if max(request.prompt_token_ids) >= config.vocab_size:
            raise _Refused(Reason.TOKEN_OUT_OF_RANGE, f"a token ID is >= {config.vocab_size}")
        if length > min(config.max_model_len, config.num_blocks * config.block_size):
            raise _Refused(Reason.PROMPT_TOO_LONG, f"{length} tokens > {config.max_model_len}")
        for descriptor, _ in params.ListFields():
            if descriptor.name not in _SUPPORTED:
                message = f"{descriptor.name} is not supported"
                raise _Refused(Reason.UNSUPPORTED_PARAMETER, message)
        if not 0 <= params.temperature <= 100:
            message = f"temperature is {params.temperature}, not from 0 to 100"
            raise _Refused(Reason.BAD_SAMPLING_PARAMS, message)
        if len(self._waiting) >= config.max_waiting:
            raise _Refused(Reason.QUEUE_FULL, f"{config.max_waiting} requests wait", 1.0)

    def _expire(self, sequence: _Sequence, seconds: float) -> None:
        self._forget(sequence)
        error = _Refused(Reason.DEADLINE_EXCEEDED, f"timeout of {seconds} s passed")
        self._fail(sequence.sink, sequence.handle, error)

    def _fail(self, sink: _Sink, handle: int, error: _Refused) -> None:
        packed = engine_pb2.RequestError(
            code=error.status.code,
            message=error.status.message,
            details=status.pack_details(error.status),
        )
        sink.message.failures.add(handle=handle, error=packed)
        sink.wake()
        self._notify()

    def _forget(self, sequence: _Sequence) -> None:
        sequence.sink.sequences.pop(sequence.handle, None)
        if sequence.timer:
            sequence.timer.cancel()
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def _close(self, sink: _Sink) -> None:
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
        while True:
            while self._stalled or not (self._running or self._waiting):
                self._work.clear()
                await self._work.wait()
            plan = self._schedule()
            await asyncio.sleep(self._seconds(plan))
            if self._tokens_to_live <= 0:
                await self._server.stop(None)
                return
            for sequence, num_tokens in plan:
                if sequence.handle in sequence.sink.sequences:
                    self._advance(sequence, num_tokens)
            self._publish()

    def _seconds(self, plan: list[tuple[_Sequence, int]]) -> float:
        prefill = sum(count for seq, count in plan if seq.num_computed < seq.num_prompt)
        rate = self.config.prefill_tokens_per_second
        decodes = any(seq.num_computed >= seq.num_prompt for seq, _ in plan)
        return (prefill / rate if rate else 0.0) + self.config.decode_step_seconds * decodes

    def _schedule(self) -> list[tuple[_Sequence, int]]:
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

    def _admit(self, sequence: _Sequence) -> None:
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

    def _advance(self, sequence: _Sequence, num_tokens: int) -> None:
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
        finish = None
        if is_eos or token in sequence.stop:
            reason = engine_pb2.FINISH_REASON_STOP
            finish = engine_pb2.Finish(reason=reason, stop_token_id=token)
        elif num_generated + 1 >= sequence.max_tokens:
            finish = engine_pb2.Finish(reason=engine_pb2.FINISH_REASON_LENGTH)
        if finish:
            sink.message.finishes.add(handle=sequence.handle, finish=finish)
            self._forget(sequence)

    def _store(self, sequence: _Sequence) -> None:
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


async def _serve(config: FakeEngineConfig, host: str, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with FakeEngine(config, host=host, port=port) as engine:
        _logger.info("ready address=%s model=%s", engine.address, config.model_name)
        await stopping.wait()
        await engine.drain()
        await engine.wait_until(lambda: not engine.num_running + engine.num_waiting, 30.0)


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    defaults = FakeEngineConfig()
    parser = argparse.ArgumentParser(
        description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--eos-token-ids", type=int, nargs="*", default=[])
    for name in ("model_name", "fingerprint"):
        parser.add_argument(f"--{name.replace('_', '-')}", default=getattr(defaults, name))
    for name in ("prefill_tokens_per_second", "decode_step_seconds"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=getattr(defaults, name))
    for name in ("vocab_size", "max_model_len", "block_size", "num_blocks", "max_num_seqs"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(defaults, name))
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    host, port = options.pop("host"), options.pop("port")
    options["eos_token_ids"] = tuple(options["eos_token_ids"])
    asyncio.run(_serve(FakeEngineConfig(**options), host, port))


if __name__ == "__main__":
    main()
