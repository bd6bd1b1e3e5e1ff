"""An executor without a model, whose next token depends on every slot that it reads.

It keeps per slot what a rank keeps, from step plans alone. The "key and value" of a position is a
hash of its token and of the value before it, read through the block table; the next token is a
hash of all values read through the table. So one wrong block, slot, position or order shows in
the output.
"""

from collections import deque
from dataclasses import dataclass, field

from engine_service.core.types import EngineInfo, RankStats, StepPlan, StepResult, int32_array
from protos.wire.sampling_params import SamplingParams
from tests.fakes.logprobs import pack
from tests.fakes.sampling_records import new_logprobs, new_seeds, new_temperatures

_POISON = 0x5A5A5A5A
_MASK = (1 << 64) - 1


def _mix(a, b):
    value = ((a ^ (b + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9) & _MASK
    return value ^ (value >> 29)


def next_token(values, seed, temperature, vocab_size, window=0):
    """Returns the token after a context whose keys and values are `values`."""
    state = len(values)
    for value in values[-window:]:
        state = _mix(state, value)
    if temperature:
        state = _mix(_mix(state, seed), round(temperature * 1000))
    return state % vocab_size


def row_logprobs(value, token_id, width, vocab_size):
    """Returns a token's logprob, and the likeliest tokens and theirs, after a token's value."""
    state = _mix(value, 1)
    likeliest = [(state + rank) % vocab_size for rank in range(width)]
    own = -(_mix(state, token_id) % 4096) / 256
    return own, likeliest, [-rank / 4 - state % 64 for rank in range(width)]


def oracle_logprobs(token_ids, width, vocab_size):
    """Returns what `row_logprobs` gives for each token of a list but the first."""
    value = _mix(0, token_ids[0])
    rows = []
    for token_id in token_ids[1:]:
        rows.append(row_logprobs(value, token_id, width, vocab_size))
        value = _mix(value, token_id)
    return rows


def oracle(token_ids, num_tokens, seed, temperature, vocab_size, window=0):  # noqa: PLR0913
    """Returns the next `num_tokens` tokens after a plain list, with no cache at all."""
    values = []
    state = 0
    for token_id in token_ids:
        state = _mix(state, token_id)
        values.append(state)
    output = []
    for _ in range(num_tokens):
        token_id = next_token(values, seed, temperature, vocab_size, window)
        output.append(token_id)
        state = _mix(state, token_id)
        values.append(state)
    return output


@dataclass
class _Slot:
    tokens: list[int]
    temperature: float
    seed: int
    num_logprobs: int
    num_prompt_logprobs: int
    blocks: list[int] = field(default_factory=list)


class FakeExecutor:
    """Runs plans in the order of launch, and refuses those that break the contract.

    Each sampled row brings one token, unless a subclass says otherwise in `count_tokens`.

    Args:
        info: Size of the cache and of the vocabulary.
        shifted_slot: For mutants: every write of this position of a block goes one further.
    """

    def __init__(self, info: EngineInfo, shifted_slot: int | None = None):
        self.info = info
        self.cache = [_POISON] * ((info.num_blocks + 1) * info.block_size)
        self.slots = {}
        self.in_flight = deque()
        self.num_launched = 0
        self.num_shared_prefixes = 0
        self.max_in_flight = 0
        self.is_closed = False
        self.rank_stats = ()
        self._shifted_slot = shifted_slot

    def launch(self, plan: StepPlan) -> int:
        self.num_launched += 1
        self._apply_changes(plan)
        self._check(plan)
        result = self._run(plan)
        self.in_flight.append((plan.step_id, self._use_of(plan), result))
        self.max_in_flight = max(self.max_in_flight, len(self.in_flight))
        return plan.step_id

    def count_tokens(self) -> int:
        """Returns how many tokens the next sampled row brings."""
        return 1

    def collect(self, handle: int) -> StepResult:
        step_id, _, result = self.in_flight.popleft()
        assert step_id == handle, "collected out of order"
        return result

    def check_ranks(self) -> None:
        assert not self.in_flight

    def take_rank_stats(self) -> tuple[RankStats, ...]:
        stats, self.rank_stats = self.rank_stats, ()
        return stats

    def close(self) -> None:
        assert not self.in_flight
        self.is_closed = True

    def _apply_changes(self, plan):
        start = 0
        used_slots = {slot for _, (slots, _, _), _ in self.in_flight for slot in slots}
        for slot, num_tokens, temperature, seed, num_logprobs, num_prompt_logprobs in zip(
            plan.new_slots,
            plan.new_num_tokens,
            new_temperatures(plan),
            new_seeds(plan),
            new_logprobs(plan),
            new_logprobs(plan, "prompt_logprobs"),
            strict=True,
        ):
            assert slot not in used_slots, f"slot {slot} is still used by a step in flight"
            assert 0 <= slot < self.info.max_num_seqs
            tokens = list(plan.new_token_ids[start : start + num_tokens])
            self.slots[slot] = _Slot(
                tokens=tokens,
                temperature=temperature,
                seed=seed,
                num_logprobs=num_logprobs,
                num_prompt_logprobs=num_prompt_logprobs,
            )
            start += num_tokens
        assert start == len(plan.new_token_ids)
        for slot, index, block_id in zip(
            plan.block_slots, plan.block_indices, plan.block_ids, strict=True
        ):
            assert 1 <= block_id <= self.info.num_blocks
            assert index == len(self.slots[slot].blocks), "tables only grow at their end"
            self.slots[slot].blocks.append(block_id)

    def _use_of(self, plan):
        """Slots of the plan, and per slot the blocks read and those written."""
        reads, writes = {}, {}
        for slot, start, count in zip(
            plan.slots, plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True
        ):
            size = self.info.block_size
            end_block = (start + count - 1) // size + 1
            first_read = max(0, start + 1 - self.info.window) if self.info.window else 0
            reads[slot] = set(self.slots[slot].blocks[first_read // size : end_block])
            writes[slot] = set(self.slots[slot].blocks[start // size : end_block])
        return set(plan.slots), reads, writes

    def _check(self, plan):
        assert len(plan.slots) == len(set(plan.slots)) > 0
        assert len(plan.slots) <= self.info.max_num_seqs
        assert plan.is_sampled.typecode == "b"
        self._check_shared_prefixes(plan)
        _, _, writes = self._use_of(plan)
        written = [block_id for blocks in writes.values() for block_id in blocks]
        assert len(written) == len(set(written)), "two writers of a block"
        for _, (_, earlier_reads, _), _ in self.in_flight:
            for slot, blocks in writes.items():
                for other, other_reads in earlier_reads.items():
                    assert slot == other or not blocks & other_reads, (
                        "a step in flight still reads a block that this plan overwrites"
                    )

    def _check_shared_prefixes(self, plan):
        packed = list(plan.shared_prefixes or ())
        seen = set()
        rows = zip(plan.slots, plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True)
        seq_lens = {slot: start + 1 for slot, start, count in rows if count == 1}
        while packed:
            size, num_tokens = packed[:2]
            slots, packed = packed[2 : 2 + size], packed[2 + size :]
            assert size > 1
            assert not seen & set(slots), "a slot is in two groups"
            seen |= set(slots)
            assert num_tokens > 0 == num_tokens % self.info.block_size
            num_blocks = num_tokens // self.info.block_size
            tables = [self.slots[slot].blocks[:num_blocks] for slot in slots]
            assert all(table == tables[0] and len(table) == num_blocks for table in tables)
            assert all(seq_lens[slot] >= num_tokens for slot in slots if slot in seq_lens)
            self.num_shared_prefixes += 1

    def _run(self, plan):
        token_counts, token_ids, logprobs, prompt_logprobs = [], [], [], []
        width, prompt_width = self._widths(plan)
        for slot_id, start, count, is_sampled, num_prompt_logprobs in zip(
            plan.slots,
            plan.num_computed_tokens,
            plan.num_scheduled_tokens,
            plan.is_sampled,
            plan.num_prompt_logprobs or [0] * len(plan.slots),
            strict=True,
        ):
            slot = self.slots[slot_id]
            end = start + count
            assert count >= 1
            assert end <= len(slot.tokens)
            assert is_sampled == (end == len(slot.tokens)), "sampled exactly at the last token"
            for position in range(start, end):
                before = self.cache[self._address(slot, position - 1)] if position else 0
                address = self._address(slot, position)
                if position % self.info.block_size == self._shifted_slot:
                    address = (address + 1) % len(self.cache)
                self.cache[address] = _mix(before, slot.tokens[position])
            assert not num_prompt_logprobs or slot.num_prompt_logprobs >= 0, "nobody asked"
            assert num_prompt_logprobs <= count
            for position in range(start + 1, start + 1 + num_prompt_logprobs):
                value = self.cache[self._address(slot, position - 1)]
                token_id = slot.tokens[position]
                prompt_logprobs.append(self._logprobs(value, token_id, prompt_width))
            new_tokens = []
            if is_sampled:
                new_tokens = self._sample(slot)
                value = self.cache[self._address(slot, len(slot.tokens) - 1)]
                for token_id in new_tokens if width >= 0 else ():
                    logprobs.append(self._logprobs(value, token_id, width))
                    value = _mix(value, token_id)
            slot.tokens += new_tokens
            token_ids += new_tokens
            token_counts.append(len(new_tokens))
        return StepResult(
            token_counts=int32_array(token_counts),
            token_ids=int32_array(token_ids),
            logprobs=pack(logprobs) if width >= 0 else None,
            prompt_logprobs=pack(prompt_logprobs) if prompt_logprobs else None,
        )

    def _widths(self, plan):
        """Returns how many logprobs the rows ask for at most: of tokens, and of prompt tokens."""
        slots = [self.slots[slot] for slot in plan.slots]
        sampled = [slot for slot, flag in zip(slots, plan.is_sampled, strict=True) if flag]
        return (
            max((slot.num_logprobs for slot in sampled), default=-1),
            max((slot.num_prompt_logprobs for slot in slots), default=-1),
        )

    def _logprobs(self, value, token_id, width):
        return row_logprobs(value, token_id, width, self.info.vocab_size)

    def _sample(self, slot):
        values = [self.cache[self._address(slot, position)] for position in range(len(slot.tokens))]
        vocab_size, window = self.info.vocab_size, self.info.window
        token_ids = []
        for _ in range(self.count_tokens()):
            token_id = next_token(values, slot.seed, slot.temperature, vocab_size, window)
            token_ids.append(token_id)
            # Not into the cache: what a row brings is computed by the rows after it.
            values.append(_mix(values[-1], token_id))
        return token_ids

    def _address(self, slot, position):
        size = self.info.block_size
        return slot.blocks[position // size] * size + position % size


def make_info(**changes) -> EngineInfo:
    """Returns the facts of a small engine."""
    values = {
        "model_name": "fake",
        "architecture": "Fake",
        "model_fingerprint": "fake-1",
        "vocab_size": 100,
        "max_model_len": 64,
        "block_size": 4,
        "num_blocks": 32,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "eos_token_ids": frozenset({0}),
        "tensor_parallel_size": 1,
        "dtype": "float32",
        "device": "cpu",
        "max_logprobs": 20,
        "default_sampling_params": SamplingParams(),
    }
    return EngineInfo(**{**values, **changes})


def make_rank_stats(**changes) -> RankStats:
    """Returns the report of a rank."""
    values = {
        "rank": 1,
        "num_steps": 7,
        "lag_seconds": 0.5,
        "collective_seconds": 2.0,
        "memory_bytes": 1000,
    }
    return RankStats(**{**values, **changes})


def tokens(*token_ids):
    """Returns token IDs as the core takes them."""
    return int32_array(token_ids)
