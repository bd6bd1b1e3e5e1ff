"""One engine in simulated time: a scheduler with one token budget, a finite KV pool, an LRU cache.

It follows engine_service/core: decodes first, then chunks of prompts in the order of arrival; a
sequence is admitted with the blocks of all its tokens and leaves one free block for each that runs;
when a decode finds no block, the youngest sequence is preempted and starts over; blocks without an
owner stay findable until reused, least recently used first, tails before heads. It leaves out what
placement cannot see: block numbers, token values, overlapped steps.

Steps in which only decodes run are taken many at a time, up to the next report, the next finish or
the next arrival, so that a simulated second costs milliseconds.
"""

import heapq
import math
from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from benchmarks.router.simulation.pool import EngineSequence, Pool
from benchmarks.router.simulation.workload import BLOCK_SIZE, Request
from router.types.engine_state import CacheUpdate, EngineLoad, EngineState, ModelInfo

REPORT_SECONDS = 0.1
"""An engine whose load changes slowly says so this often."""

_RATE_MEMORY_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What an engine can do; the defaults are Qwen3-8B in bfloat16 on one H200.

    A step takes max(weights, prompt tokens / prefill rate) + row * decodes + context * their cached
    tokens: weights are read once a step, which hides behind the computation of a long prompt.
    The context's share is its 147,456 bytes a token over the measured 4.21 TB/s; the other two are
    fitted to what vLLM 0.24 reaches on that machine, within 6 % of each of: 193 output tokens/s of
    one request, 4,594 of 64 at once, 9,361 of 256 ragged ones, their prefill included.
    """

    prefill_tokens_per_second: float = 40_860.0
    weights_seconds: float = 5.14e-3
    row_seconds: float = 5e-6
    context_token_seconds: float = 35e-9
    num_blocks: int = 11_500
    """Of the 110 GB that 0.9 of 141 GB leave beside 16 GB of weights."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192

    def step_seconds(self, num_prefill_tokens: int, num_decodes: int, num_context: int) -> float:
        """Returns the duration of one step."""
        return (
            max(self.weights_seconds, num_prefill_tokens / self.prefill_tokens_per_second)
            + self.row_seconds * num_decodes
            + self.context_token_seconds * num_context
        )

    def model_info(self) -> ModelInfo:
        """Returns what the router is told."""
        return ModelInfo(
            name="qwen3-8b",
            architecture="",
            fingerprint="f",
            vocab_size=151_936,
            max_model_len=40_960,
            block_size=BLOCK_SIZE,
            block_hash_scheme="",
            eos_token_ids=frozenset(),
            tokenizer_sha256="",
            epoch=1,
            num_blocks=self.num_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )


@dataclass(slots=True, kw_only=True)
class Report:
    """What an engine tells the router at the end of a step."""

    engine: int
    load: EngineLoad
    cache: CacheUpdate | None
    admitted: list[Request]
    started: list[Request]
    """Those whose first token this is."""
    finished: list[Request]


class _Rate:
    """Amount over time with fading weights, as engine_service/server/load_meter.py keeps it."""

    def __init__(self) -> None:
        self.amount = 0.0
        self.seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        fading = math.exp(-seconds / _RATE_MEMORY_SECONDS)
        self.amount = self.amount * fading + amount
        self.seconds = self.seconds * fading + seconds

    @property
    def value(self) -> float:
        return self.amount / self.seconds if self.seconds else 0.0


class Engine:
    """Runs sequences. The caller asks `start` when it may begin a step, and ends it by `end`.

    Attributes:
        step_end: When the present step, or the last of several, ends; None while it is idle.
        version: Grows when `step_end` changes, so that an event of an earlier one is known.
    """

    def __init__(self, number: int, hardware: Hardware) -> None:
        self.number = number
        self.step_end: float | None = None
        self.version = 0
        self.busy_seconds = 0.0
        self.num_prefill_tokens = 0
        self.num_output_tokens = 0
        self.num_preemptions = 0
        self.pool = Pool(hardware.num_blocks)
        self._hardware = hardware
        self._inbox: list[Request] = []
        self._waiting: deque[EngineSequence] = deque()
        self._running: dict[EngineSequence, None] = {}
        """In the order of admission."""
        self._prefilling: list[EngineSequence] = []
        self._ends: list[tuple[int, int, EngineSequence]] = []
        """Heap of the decoding, by the count of steps at which they finish."""
        self._num_decoding = 0
        self._num_context = 0
        self._num_steps = 0
        self._block_due = [0] * BLOCK_SIZE
        """By the number of a step, modulo, how many sequences need a block in it."""

        self._chunks: list[tuple[EngineSequence, int]] = []
        self._step_ends = array("d")
        self._step_start = 0.0
        self._admitted: list[Request] = []
        self._prefill_rate, self._decode_rate, self._decode_steps = _Rate(), _Rate(), _Rate()
        self._sequence_number = 0

    def receive(self, now: float, request: Request) -> None:
        """Takes a request; a run of decode steps ends with the present one."""
        self._inbox.append(request)
        if self.step_end is not None and len(self._step_ends) > 1:
            place = bisect_left(self._step_ends, now)
            if place + 1 < len(self._step_ends):
                del self._step_ends[place + 1 :]
                self.step_end = self._step_ends[-1]
                self.version += 1

    def start(self, now: float) -> None:
        """Begins a step, or several, if there is anything to do."""
        for request in self._inbox:
            self._waiting.append(EngineSequence(request))
        self._inbox = []
        is_short = self._allocate_for_decodes()
        budget = self._hardware.max_num_batched_tokens - self._num_decoding
        self._chunks = []
        for sequence in self._prefilling:
            budget -= self._add_chunk(sequence, budget)
        while budget > 0 and self._waiting and not is_short and self._admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            self._prefilling.append(sequence)
            budget -= self._add_chunk(sequence, budget)
        self._step_start = now
        self._step_ends = array("d")
        self.step_end = None
        if self._chunks or self._num_decoding:
            self._plan_ends(now)
            self.step_end = self._step_ends[-1]
            self.version += 1

    def end(self, now: float) -> Report:
        """Ends what `start` began and tells the router of it."""
        num_steps = len(self._step_ends)
        self._measure(now - self._step_start, num_steps)
        later = range(self._num_steps + 1, self._num_steps + num_steps)
        self.pool.allocate(sum(map(self._blocks_due, later)))
        self._num_steps += num_steps
        self._num_context += self._num_decoding * num_steps
        self.num_output_tokens += self._num_decoding * num_steps
        finished: list[Request] = []
        while self._has_ended_decode():
            sequence = heapq.heappop(self._ends)[2]
            self._stop_decoding(sequence)
            self._leave(sequence)
            finished.append(sequence.request)
        started = self._end_chunks(finished)
        self.step_end = None
        admitted, self._admitted = self._admitted, []
        return Report(
            engine=self.number,
            load=self._load(),
            cache=self._cache_update(),
            admitted=admitted,
            started=started,
            finished=finished,
        )

    def _blocks_due(self, step: int) -> int:
        return self._block_due[step % BLOCK_SIZE]

    def _allocate_for_decodes(self) -> bool:
        """Gives decodes the blocks of the next step; returns whether that needed a preemption."""
        is_short = False
        while self._blocks_due(self._num_steps) > self.pool.num_free:
            self._preempt(next(reversed(self._running)))
            is_short = True
        self.pool.allocate(self._blocks_due(self._num_steps))
        return is_short

    def _preempt(self, sequence: EngineSequence) -> None:
        self.num_preemptions += 1
        if sequence.decode_start >= 0:
            self._stop_decoding(sequence)
        else:
            self._prefilling.remove(sequence)
        self.pool.release(sequence)
        del self._running[sequence]
        sequence.num_computed = 0
        self._waiting.appendleft(sequence)

    def _admit(self, sequence: EngineSequence) -> bool:
        if len(self._running) >= self._hardware.max_num_seqs:
            return False
        size = BLOCK_SIZE
        hashes = sequence.request.hashes[: (sequence.num_known - 1) // size]
        depth, num_unowned = self.pool.match(hashes)
        num_new = -(-sequence.num_known // size) - depth
        if num_new + num_unowned + len(self._running) > self.pool.num_free:
            return False
        sequence.hashed = list(hashes[:depth])
        self.pool.touch(sequence.hashed)
        self.pool.allocate(num_new)
        sequence.num_private = num_new
        sequence.num_computed = depth * size
        self._running[sequence] = None
        if sequence.num_cached is None:
            sequence.num_cached = sequence.request.num_cached = depth * size
            self._admitted.append(sequence.request)
        return True

    def _add_chunk(self, sequence: EngineSequence, budget: int) -> int:
        """Plans as much of a prompt as the budget allows; its full blocks are findable at once."""
        count = min(budget, sequence.num_known - sequence.num_computed)
        if count > 0:
            size = BLOCK_SIZE
            first = sequence.num_computed // size
            last = (sequence.num_computed + count) // size
            self.pool.register(sequence, sequence.request.hashes[first:last])
            self._chunks.append((sequence, count))
        return count

    def _plan_ends(self, now: float) -> None:
        hardware = self._hardware
        num_decodes, num_context = self._num_decoding, self._num_context
        num_prefill_tokens = sum(count for _, count in self._chunks)
        now += hardware.step_seconds(num_prefill_tokens, num_decodes, num_context)
        self._step_ends.append(now)
        if self._chunks:
            return
        self._drop_preempted()
        last_step = self._ends[0][0]
        num_free = self.pool.num_free
        for step in range(self._num_steps + 1, last_step):
            num_free -= self._blocks_due(step)
            if num_free < 0 or now - self._step_start > REPORT_SECONDS:
                return
            num_context += num_decodes
            now += hardware.step_seconds(0, num_decodes, num_context)
            self._step_ends.append(now)

    def _measure(self, seconds: float, num_steps: int) -> None:
        """Learns rates as engine_service/server/load_meter.py does."""
        self.busy_seconds += seconds
        num_prefill = sum(count for _, count in self._chunks)
        num_decode = self._num_decoding
        self.num_prefill_tokens += num_prefill
        if num_prefill and num_decode:
            share = seconds * num_prefill / (num_prefill + num_decode)
            steps_per_second = self._decode_steps.value
            rest = seconds - 1 / steps_per_second if steps_per_second else share
            self._prefill_rate.add(num_prefill, max(rest, share / 2))
        elif num_prefill:
            self._prefill_rate.add(num_prefill, seconds)
        else:
            self._decode_rate.add(num_decode * num_steps, seconds)
            self._decode_steps.add(num_steps, seconds)

    def _end_chunks(self, finished: list[Request]) -> list[Request]:
        """Moves prompts that are complete to the decoding; returns those with a first token."""
        started = []
        for sequence, count in self._chunks:
            sequence.num_computed += count
            if sequence.num_computed < sequence.num_known:
                continue
            self._prefilling.remove(sequence)
            sequence.num_outputs += 1
            self.num_output_tokens += 1
            if sequence.num_outputs == 1:
                started.append(sequence.request)
            if sequence.num_outputs == sequence.request.num_output_tokens:
                self._leave(sequence)
                finished.append(sequence.request)
            else:
                self._start_decoding(sequence)
        return started

    def _start_decoding(self, sequence: EngineSequence) -> None:
        sequence.decode_start = self._num_steps
        self._num_decoding += 1
        self._num_context += sequence.num_computed
        self._block_due[self._due(sequence)] += 1
        entry = (self._end_of(sequence), sequence.request.number, sequence)
        heapq.heappush(self._ends, entry)

    def _stop_decoding(self, sequence: EngineSequence) -> None:
        """Writes down what the engine's counts say of a sequence."""
        num_steps = self._num_steps - sequence.decode_start
        self._num_decoding -= 1
        self._block_due[self._due(sequence)] -= 1
        sequence.num_outputs += num_steps
        sequence.num_computed += num_steps
        self._num_context -= sequence.num_computed
        size = BLOCK_SIZE
        num_blocks = -(-sequence.num_computed // size)
        sequence.num_private = num_blocks - len(sequence.hashed)
        first = (sequence.num_computed - num_steps) // size
        last = sequence.num_computed // size
        self.pool.register(sequence, sequence.request.hashes[first:last])
        sequence.decode_start = -1

    def _end_of(self, sequence: EngineSequence) -> int:
        """Returns the count of steps at which a decoding sequence has all its tokens."""
        num_left = sequence.request.num_output_tokens - sequence.num_outputs
        return sequence.decode_start + num_left

    def _due(self, sequence: EngineSequence) -> int:
        return (sequence.decode_start - sequence.num_computed) % BLOCK_SIZE

    def _has_ended_decode(self) -> bool:
        self._drop_preempted()
        return bool(self._ends) and self._ends[0][0] <= self._num_steps

    def _drop_preempted(self) -> None:
        """Makes the first entry of the heap that of a sequence that decodes."""
        while self._ends:
            step, _, sequence = self._ends[0]
            if sequence.decode_start >= 0 and step == self._end_of(sequence):
                return
            heapq.heappop(self._ends)

    def _leave(self, sequence: EngineSequence) -> None:
        self.pool.release(sequence)
        del self._running[sequence]

    def _load(self) -> EngineLoad:
        num_uncomputed = sum(s.num_known - s.num_computed for s in self._prefilling)
        return EngineLoad(
            state=EngineState.SERVING,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_waiting_prefill_tokens=num_uncomputed + sum(s.num_known for s in self._waiting),
            num_free_blocks=self.pool.num_free,
            num_blocks=self._hardware.num_blocks,
            prefill_tokens_per_second=self._prefill_rate.value,
            decode_tokens_per_second=self._decode_rate.value,
        )

    def _cache_update(self) -> CacheUpdate | None:
        stored, removed = self.pool.take_delta()
        if not stored and not removed:
            return None
        self._sequence_number += 1
        return CacheUpdate(
            epoch=1, sequence_number=self._sequence_number, stored=stored, removed=removed
        )
