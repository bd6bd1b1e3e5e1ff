"""Drives a real core with random requests and checks its books after every step."""

import random
from collections import Counter

from engine_service.config import SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.limits import Limits
from engine_service.core.sequence import SequenceState
from engine_service.core.types import (
    FinishReason,
    Request,
    int32_array,
)
from engine_service.errors import InvalidRequest
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.core.fake_executor import (
    FakeExecutor,
    make_info,
    oracle,
    oracle_logprobs,
)
from tests.fakes.logprobs import unpack

MAX_STEPS = 20_000


class CoreDriver:
    """One random engine, and all that its requests were promised.

    Args:
        seed: Decides the engine's sizes and everything that happens to it.
        executor: Class of the executor, to try a broken one.
        changes: Facts of the engine that are not left to chance.
    """

    def __init__(self, seed, *, executor=FakeExecutor, **changes):
        self.rng = random.Random(seed)
        choose = self.rng.choice
        max_num_seqs = self.rng.randint(1, 6)
        values = {
            "block_size": choose([1, 2, 3, 4, 8]),
            "num_blocks": self.rng.randint(3, 24),
            "max_num_seqs": max_num_seqs,
            "max_model_len": self.rng.randint(8, 48),
            "vocab_size": choose([12, 40]),
        }
        self.caching = changes.pop("caching", choose([True, True, True, False]))
        self.depth = changes.pop("depth", choose([1, 2, 2, 3]))
        budget = changes.pop("budget", choose([1, 2, 5, 16, 64]))
        self.info = make_info(**{**values, **changes})
        self.limits = Limits.from_info(self.info)
        self.executor = executor(self.info)
        self.core = EngineCore(
            self.info,
            SchedulerOptions(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=budget,
                max_steps_in_flight=self.depth,
            ),
            self.executor,
            enable_prefix_caching=self.caching,
        )
        self.bases = [
            [self.rng.randrange(1, self.info.vocab_size) for _ in range(self.info.max_model_len)]
            for _ in range(2)
        ]
        self.requests = {}
        self.outputs = {}
        self.logprobs = {}
        self.prompt_logprobs = {}
        self.admissions = {}
        self.finishes = {}
        self.cancelled = set()
        self.findable = set()
        self.counts = Counter()

    @property
    def open_ids(self):
        return self.requests.keys() - self.finishes.keys() - self.cancelled

    @property
    def untold_ids(self):
        """Requests that ended as they came, which the next step tells."""
        return {finish.request_id for finish in self.core.scheduler._events.finishes}

    def run(self, num_requests):
        """Lets requests come and go, then waits for all; every promise is checked."""
        num_steps = 0
        while len(self.requests) < num_requests or self.core.has_work:
            event = self.rng.random()
            if event < 0.35 and len(self.requests) < num_requests:
                self.add()
            elif event < 0.39 and self.open_ids - self.untold_ids:
                self.cancel(self.rng.choice(sorted(self.open_ids - self.untold_ids)))
            else:
                self.step()
            num_steps += 1
            assert num_steps < MAX_STEPS, "no end"
        self.step()
        self.counts["shared_prefixes"] = self.executor.num_shared_prefixes
        self.check_end()

    def add(self):
        request = self.make_request()
        try:
            self.limits.check(request)
        except InvalidRequest:
            self.counts["refused"] += 1
            return
        self.core.add(request)
        self.requests[request.request_id] = request
        self.outputs[request.request_id] = []
        self.logprobs[request.request_id] = []
        self.prompt_logprobs[request.request_id] = []

    def make_request(self):
        rng = self.rng
        length = rng.randint(1, self.info.max_model_len)
        if rng.random() < 0.4:
            length = max(1, length // self.info.block_size * self.info.block_size)
        if rng.random() < 0.5:
            length = min(length, 2 * self.info.block_size)
        prompt = rng.choice(self.bases)[:length]
        if rng.random() < 0.3:
            prompt = [*prompt[:-1], rng.randrange(1, self.info.vocab_size)]
        prompt_logprobs = rng.choice([None, None, None, 0, 3])
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            max_tokens=rng.choice([None, 1, 2, 5, 12, 30] + [0, 0] * (prompt_logprobs is not None)),
            logprobs=rng.choice([None, None, None, 0, 1, 5]),
            prompt_logprobs=prompt_logprobs,
            ignore_eos=rng.random() < 0.3,
            stop_token_ids=frozenset(rng.sample(range(self.info.vocab_size), rng.choice([0, 1]))),
            seed=rng.choice([None, 7, 2**63 - 1]),
        )
        resumed = []
        if params.seed is not None and params.max_tokens != 0 and rng.random() < 0.3:
            resumed = self.continuation(prompt, params, params.seed, rng.randint(1, 6))
        return Request(
            request_id=len(self.requests) + self.counts["refused"],
            prompt_token_ids=int32_array(prompt),
            sampling_params=params,
            resume_token_ids=int32_array(resumed),
            priority=rng.choice([-1, 0, 0, 0, 2]),
            cache_salt=rng.choice(["", "", "a"]),
        )

    def continuation(self, prompt, params, seed, num_tokens):
        info = self.info
        return oracle(prompt, num_tokens, seed, params.temperature, info.vocab_size, info.window)

    def cancel(self, request_id):
        self.counts["cancelled"] += 1
        self.counts["cancelled_in_flight"] += bool(self.executor.in_flight)
        self.cancelled.add(request_id)
        self.core.cancel(request_id)
        self.check_books()

    def step(self):
        output = self.core.step()
        for admission in output.admissions:
            assert admission.request_id not in self.admissions, "admitted twice"
            self.admissions[admission.request_id] = admission
        start = 0
        for request_id, count in zip(output.request_ids, output.token_counts, strict=True):
            assert request_id in self.open_ids, "a token after the end"
            self.outputs[request_id] += output.token_ids[start : start + count]
            start += count
        assert start == len(output.token_ids)
        self.take_logprobs(output)
        for finish in output.finishes:
            assert finish.request_id in self.open_ids, "a second outcome"
            self.finishes[finish.request_id] = finish
            self.check_output(finish)
        self.replay(output.cache_delta)
        stats = output.stats
        self.counts["preempted"] += stats.num_preemptions
        self.counts["hit_tokens"] += stats.num_prefix_hit_tokens
        assert stats.num_scheduled_seqs <= self.info.max_num_seqs
        assert stats.num_free_blocks + stats.num_used_blocks == self.info.num_blocks
        self.check_books()

    def take_logprobs(self, output):
        new_tokens = dict(zip(output.request_ids, output.token_counts, strict=True))
        asking = {
            request_id
            for request_id in new_tokens
            if self.requests[request_id].sampling_params.logprobs is not None
        }
        assert {request_id for request_id, _, _ in output.logprobs or ()} == asking
        for request_id, position, logprobs in output.logprobs or ():
            request = self.requests[request_id]
            assert len(logprobs) == new_tokens[request_id]
            assert logprobs.width == request.sampling_params.logprobs
            num_given = len(request.prompt_token_ids) + len(request.resume_token_ids)
            assert position == num_given + len(self.logprobs[request_id])
            self.logprobs[request_id] += unpack(logprobs)
        for request_id, position, logprobs in output.prompt_logprobs or ():
            failed = {failure.request_id for failure in output.failures}
            assert request_id in self.open_ids | failed
            assert logprobs.width == self.requests[request_id].sampling_params.prompt_logprobs
            assert position == 1 + len(self.prompt_logprobs[request_id]), "once, and in order"
            self.prompt_logprobs[request_id] += unpack(logprobs)
            self.counts["prompt_logprobs"] += len(logprobs)
        for request_id in new_tokens:
            self.check_prompt_logprobs(request_id)

    def check_prompt_logprobs(self, request_id):
        request = self.requests[request_id]
        width = request.sampling_params.prompt_logprobs
        rows = self.prompt_logprobs[request_id]
        if width is None:
            assert not rows
        else:
            prompt = request.prompt_token_ids
            expected = oracle_logprobs(prompt, width, self.info.vocab_size)
            assert rows == expected, "a wrong key or value was read"

    def check_logprobs(self, request_id):
        request = self.requests[request_id]
        params = request.sampling_params
        if self.outputs[request_id] or params.max_tokens == 0:
            self.check_prompt_logprobs(request_id)
        if params.logprobs is not None:
            given = request.prompt_token_ids + request.resume_token_ids
            known = [*given, *self.outputs[request_id]]
            rows = oracle_logprobs(known, params.logprobs, self.info.vocab_size)
            expected = rows[len(given) - 1 :]
            assert self.logprobs[request_id] == expected, "a wrong key or value was read"
        if self.prompt_logprobs[request_id]:
            assert self.admissions[request_id].num_cached_tokens == 0

    def replay(self, delta):
        assert not set(delta.stored) & set(delta.removed)
        assert not self.findable & set(delta.stored)
        assert self.findable >= set(delta.removed)
        self.findable = self.findable - set(delta.removed) | set(delta.stored)
        assert self.findable == self.core.scheduler.pool.findable_hashes()

    def expected_output(self, request_id):
        """Returns all tokens to be generated, and why the last is the last."""
        request = self.requests[request_id]
        params = request.sampling_params
        stop_token_ids = params.stop_token_ids
        if not params.ignore_eos:
            stop_token_ids = stop_token_ids | self.info.eos_token_ids
        given = list(request.prompt_token_ids + request.resume_token_ids)
        longest = min(
            self.info.max_model_len,
            self.info.num_blocks * self.info.block_size + 1,
            len(request.prompt_token_ids)
            + (self.info.max_model_len if params.max_tokens is None else params.max_tokens),
        )
        if request.resume_token_ids and given[-1] in stop_token_ids:
            return [], FinishReason.STOP
        if len(given) == longest:
            return [], FinishReason.LENGTH
        seed = self.admissions[request_id].seed
        tokens = self.continuation(given, params, seed, longest - len(given))
        for index, token_id in enumerate(tokens):
            if token_id in stop_token_ids:
                return tokens[: index + 1], FinishReason.STOP
        return tokens, FinishReason.LENGTH

    def check_output(self, finish):
        tokens, reason = self.expected_output(finish.request_id)
        assert self.outputs[finish.request_id] == tokens, "a wrong key or value was read"
        assert finish.reason is reason
        self.check_logprobs(finish.request_id)
        if self.requests[finish.request_id].sampling_params.max_tokens == 0:
            assert finish.request_id in self.admissions
            self.counts["scored"] += 1
        self.counts[reason.value] += 1
        self.counts["ended_at_once"] += not tokens

    def check_books(self):
        scheduler = self.core.scheduler
        running, waiting = list(scheduler._running), list(scheduler._waiting)
        ids = {sequence.request_id for sequence in running + waiting}
        assert ids == self.open_ids - self.untold_ids
        assert all(sequence.state is SequenceState.RUNNING for sequence in running)
        assert all(sequence.state is SequenceState.WAITING for sequence in waiting)
        assert scheduler._num_waiting_tokens == sum(len(s.token_ids) for s in waiting)
        for queue in running, waiting:
            assert queue == sorted(queue, key=lambda sequence: sequence.order)
        slots = [sequence.slot for sequence in running]
        slots += [retired.slot for retired in scheduler._slots._retired] + scheduler._slots._free
        slots = [slot for slot in slots if slot is not None]
        assert sorted(slots) == list(range(self.info.max_num_seqs))
        tables = [sequence.block_table[sequence.num_passed_blocks :] for sequence in running]
        self.counts["passed"] += sum(sequence.num_passed_blocks for sequence in running)
        tables += [retired.block_table for retired in scheduler._slots._retired]
        self.check_pool(scheduler.pool, tables)
        for sequence in running:
            for block_id in sequence.block_table[
                sequence.num_cacheable_tokens // self.info.block_size :
            ]:
                assert scheduler.pool.ref_count(block_id) == 1, "a block to be written is shared"

    def check_pool(self, pool, tables):
        references = Counter(block_id for table in tables for block_id in table)
        free = []
        block_id = pool._next[0]
        while block_id:
            free.append(block_id)
            assert pool._previous[pool._next[block_id]] == block_id
            block_id = pool._next[block_id]
        assert len(free) == len(set(free)) == pool.num_free_blocks
        for block_id in range(1, self.info.num_blocks + 1):
            assert pool.ref_count(block_id) == references[block_id]
            assert (block_id in references) != (block_id in free)
        stats = pool.statistics()
        assert stats.num_cached_blocks == sum(
            pool._registrations[block_id] > 0 for block_id in free
        )
        assert stats.num_used_blocks == len(references)
        total = stats.num_empty_blocks + stats.num_cached_blocks + stats.num_used_blocks
        assert total == self.info.num_blocks
        assert len(pool._block_of_hash) == sum(number > 0 for number in pool._registrations)
        assert pool._block_of_registration == {
            number: block_id for block_id, number in enumerate(pool._registrations) if number
        }

    def check_end(self):
        assert self.requests.keys() == self.finishes.keys() | self.cancelled
        for request_id in self.cancelled & self.admissions.keys():
            tokens, _ = self.expected_output(request_id)
            output = self.outputs[request_id]
            assert output == tokens[: len(output)]
        scheduler = self.core.scheduler
        assert not scheduler._slots.has_retired
        assert not scheduler._in_flight
        assert not self.executor.in_flight
        assert scheduler.pool.num_free_blocks == self.info.num_blocks
        assert self.executor.max_in_flight <= self.depth
        self.core.close()
        assert self.executor.is_closed
