"""Random schedules through the real scheduler and pool, and proof that the checks have teeth."""

import random
from collections import Counter

import pytest

import engine_service.core.engine_core
import engine_service.core.prefix_groups
import engine_service.core.scheduler
import engine_service.core.sequence
from engine_service.core.types import NO_TOKEN
from tests.engine_service.core.core_driver import CoreDriver
from tests.engine_service.core.fake_executor import FakeExecutor

NUM_ENGINES = 60
NUM_REQUESTS = 20


def drive(seeds, driver_class=CoreDriver, **changes):
    counts = Counter()
    for seed in seeds:
        driver = driver_class(seed, **changes)
        try:
            driver.run(NUM_REQUESTS)
        except AssertionError as error:
            error.add_note(f"{seed=} {changes}")
            raise
        counts += driver.counts
    return counts


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no_caching"])
def test_outputs_equal_the_oracle_whatever_happens(monkeypatch, depth, caching):
    # The executor checks what is said to be shared.
    monkeypatch.setattr(engine_service.core.prefix_groups, "_MIN_SAVED_TOKENS", 1)
    monkeypatch.setattr(engine_service.core.prefix_groups, "_MIN_PREFIX_TOKENS", 1)
    monkeypatch.setattr(engine_service.core.engine_core, "_MAX_FIRST_ADMISSIONS", 2)
    # Other engines for each; `make slow` runs thousands.
    first = NUM_ENGINES * (2 * depth + caching)
    counts = drive(range(first, first + NUM_ENGINES), depth=depth, caching=caching)

    for event in "stop", "length", "preempted", "cancelled", "ended_at_once", "refused", "scored":
        assert counts[event], f"no request was ever {event}"
    assert counts["prompt_logprobs"]
    assert bool(counts["hit_tokens"]) == caching
    assert bool(counts["shared_prefixes"]) == caching
    assert bool(counts["cancelled_in_flight"]) == (depth > 1)


@pytest.mark.parametrize("tile", [1, 6])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no_caching"])
def test_outputs_equal_the_oracle_when_blocks_fall_out_of_the_window(
    monkeypatch, tile, depth, caching
):
    monkeypatch.setattr(engine_service.core.sequence, "MAX_KEY_TILE", tile)

    first = NUM_ENGINES * (2 * depth + caching)
    counts = Counter()
    for window in (2, 5, 13):
        seeds = range(first, first + NUM_ENGINES // 3)
        counts += drive(seeds, depth=depth, caching=caching, windows=(window,))
    assert counts["passed"]
    assert counts["preempted"]
    assert bool(counts["hit_tokens"]) == caching


class BlindSequence(engine_service.core.sequence.Sequence):
    """Gives back a block that the window still has."""

    def pass_blocks(self, window, block_size):
        return super().pass_blocks(max(1, window - block_size), block_size)


def test_blocks_given_back_too_early_show(monkeypatch):
    monkeypatch.setattr(engine_service.core.sequence, "MAX_KEY_TILE", 1)
    monkeypatch.setattr(engine_service.core.scheduler, "Sequence", BlindSequence)

    with pytest.raises(AssertionError):
        drive(range(NUM_ENGINES), windows=(5,))


def test_equal_digests_of_all_blocks_mix_no_contexts(monkeypatch):
    def forged(parent, token_ids, block_size):
        return [b"\0" * 16] * (len(token_ids) // block_size)

    monkeypatch.setattr(engine_service.core.sequence, "block_digests", forged)

    counts = drive(range(NUM_ENGINES), caching=True)

    assert counts["hit_tokens"], "first blocks can still be hit"


def test_equal_digests_of_equal_blocks_mix_no_contexts(monkeypatch):
    def forged(parent, token_ids, block_size):
        return [bytes(8) + sum(token_ids[:1]).to_bytes(8, "big")] * (len(token_ids) // block_size)

    monkeypatch.setattr(engine_service.core.sequence, "block_digests", forged)

    # Among these, equal blocks behind different ones meet.
    drive(range(140, 140 + NUM_ENGINES), caching=True)


class UnevenExecutor(FakeExecutor):
    """Sampled rows bring zero to four tokens."""

    def __init__(self, info):
        super().__init__(info)
        self.rng = random.Random(info.num_blocks)
        self.counts = Counter()
        self.num_collected_tokens = 0

    def count_tokens(self):
        count = self.rng.choice([0, 1, 1, 2, 3, 4])
        self.counts[count] += 1
        return count

    def collect(self, handle):
        result = super().collect(handle)
        self.num_collected_tokens += len(result.token_ids)
        return result


class UnevenDriver(CoreDriver):
    """Checks besides that what a step tells of its tokens adds up."""

    def __init__(self, seed, **changes):
        super().__init__(seed, executor=UnevenExecutor, depth=1, **changes)
        self.executor.counts = self.counts

    def step(self):
        step = self.core.step

        def step_and_check():
            num_collected_before = self.executor.num_collected_tokens
            output = step()
            num_collected = self.executor.num_collected_tokens - num_collected_before
            num_told = sum(output.token_counts)
            assert all(output.token_counts)
            assert output.stats.num_generated_tokens == num_told
            assert num_told == num_collected or output.finishes, "only an end drops tokens"
            self.counts["dropped"] += num_collected - num_told
            return output

        self.core.step = step_and_check
        super().step()
        self.core.step = step
        for sequence in self.core.scheduler._running:
            assert self.executor.slots[sequence.slot].blocks == sequence.block_table


@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no_caching"])
def test_outputs_equal_the_oracle_however_many_tokens_a_row_brings(caching):
    counts = drive(range(NUM_ENGINES), UnevenDriver, caching=caching)

    for event in 0, 1, 2, 3, 4, "stop", "length", "preempted", "cancelled", "dropped":
        assert counts[event], f"nothing was ever {event}"
    assert bool(counts["hit_tokens"]) == caching


class PassingSequence(engine_service.core.sequence.Sequence):
    """Gives back each block once: what is behind the window stays behind it."""

    def pass_blocks(self, window, block_size):
        num_before = self.num_passed_blocks
        block_ids = super().pass_blocks(window, block_size)
        assert len(block_ids) == self.num_passed_blocks - num_before
        return block_ids


@pytest.mark.parametrize("tile", [1, 6])
@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no_caching"])
def test_windows_only_move_on_however_many_tokens_a_row_brings(monkeypatch, tile, caching):
    monkeypatch.setattr(engine_service.core.sequence, "MAX_KEY_TILE", tile)
    monkeypatch.setattr(engine_service.core.scheduler, "Sequence", PassingSequence)

    counts = Counter()
    for window in (2, 5, 13):
        seeds = range(NUM_ENGINES // 2)
        counts += drive(seeds, UnevenDriver, caching=caching, windows=(window,))
    for event in 0, 4, "passed", "preempted", "cancelled", "dropped":
        assert counts[event], f"nothing was ever {event}"
    assert bool(counts["hit_tokens"]) == caching


class InvalidExecutor(FakeExecutor):
    """Some rows yield no token."""

    def launch(self, plan):
        handle = super().launch(plan)
        step_id, use, result = self.in_flight.pop()
        token_ids = result.token_ids
        for index in range(len(token_ids)):
            if (step_id * 7 + index) % 11 == 0:
                token_ids[index] = NO_TOKEN
        self.in_flight.append((step_id, use, result))
        return handle


class FailingDriver(CoreDriver):
    """Takes failed requests for cancelled ones: what they got until then is right."""

    def step(self):
        step = self.core.step

        def step_and_note_failures():
            output = step()
            failed = {failure.request_id for failure in output.failures}
            assert failed <= self.open_ids
            assert not failed & set(output.request_ids), "a token of a request that failed"
            assert output.stats.num_invalid_logits == len(failed)
            self.cancelled |= failed
            self.counts["failed"] += len(failed)
            return output

        self.core.step = step_and_note_failures
        super().step()
        self.core.step = step


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rows_without_a_token_end_their_requests_and_no_others(depth):
    counts = Counter()
    for seed in range(NUM_ENGINES):
        driver = FailingDriver(seed, executor=InvalidExecutor, depth=depth)
        driver.run(NUM_REQUESTS)
        counts += driver.counts

    for event in "failed", "stop", "length", "preempted", "cancelled", "hit_tokens":
        assert counts[event], f"no request was ever {event}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("batch", range(10))
def test_outputs_equal_the_oracle_in_many_engines(batch):
    drive(range(1000 + 1000 * batch, 2000 + 1000 * batch))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("batch", range(2))
def test_outputs_equal_the_oracle_however_many_tokens_a_row_brings_in_many_engines(batch):
    drive(range(1000 + 1000 * batch, 2000 + 1000 * batch), UnevenDriver)


class ShiftedExecutor(FakeExecutor):
    def __init__(self, info):
        super().__init__(info, shifted_slot=0)


def test_a_shifted_slot_is_noticed():
    with pytest.raises(AssertionError, match="wrong key or value"):
        drive(range(NUM_ENGINES), executor=ShiftedExecutor)
