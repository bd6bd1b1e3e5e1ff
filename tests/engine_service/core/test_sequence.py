from array import array

import pytest

from engine_service.core.recent_prompts import RecentPrompts
from engine_service.core.sequence import Sequence
from engine_service.core.sequence_queue import SequenceQueue
from engine_service.core.types import (
    FinishReason,
    Request,
)
from protos.wire.block_hash import block_digests, low_64_bits, root_digest
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.core.fake_executor import tokens

ROOT = root_digest("fake-1")


def make_sequence(prompt=(1, 2, 3), resumed=(), number=0, priority=0, root=ROOT, **params):
    return Sequence(
        Request(
            request_id=number,
            prompt_token_ids=tokens(*prompt),
            resume_token_ids=tokens(*resumed),
            priority=priority,
            sampling_params=SamplingParams(**params),
        ),
        number=number,
        max_num_tokens=6,
        eos_token_ids=frozenset({0}),
        root=root,
    )


def test_hashes_extended_step_by_step_equal_those_of_the_whole():
    sequence = make_sequence(prompt=(1,))
    recent = RecentPrompts(4)
    for token_id in range(2, 20):
        sequence.token_ids.append(token_id)
        sequence.extend_block_hashes(4, recent)

    digests = block_digests(ROOT, sequence.token_ids, 4)
    assert sequence.block_hashes == array("Q", map(low_64_bits, digests))


@pytest.mark.parametrize("own", [(), (9,), (9,) * 4, (9,) * 11])
def test_hashes_of_a_prompt_that_begins_like_another_are_its_own(own, monkeypatch):
    hashed = []

    def counted(parent, token_ids, block_size):
        digests = block_digests(parent, token_ids, block_size)
        hashed.extend(digests)
        return digests

    monkeypatch.setattr("engine_service.core.sequence.block_digests", counted)
    recent = RecentPrompts(4)
    make_sequence(prompt=range(12)).extend_block_hashes(4, recent)
    hashed.clear()
    sequence = make_sequence(prompt=(*range(12), *own))

    sequence.extend_block_hashes(4, recent)

    digests = block_digests(ROOT, sequence.token_ids, 4)
    assert sequence.block_hashes == array("Q", map(low_64_bits, digests))
    assert hashed == digests[3:]
    other = make_sequence(prompt=range(12), root=root_digest("fake-1", cache_salt="other"))
    other.extend_block_hashes(4, recent)
    assert not set(other.block_hashes) & set(sequence.block_hashes)
    sequence.token_ids.extend([8] * 4)
    sequence.extend_block_hashes(4, recent)
    digests = block_digests(ROOT, sequence.token_ids, 4)
    assert sequence.block_hashes == array("Q", map(low_64_bits, digests))


def test_a_seed_is_picked_where_none_is_given():
    seeds = {make_sequence().seed for _ in range(10)}

    assert len(seeds) == 10
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert make_sequence(seed=0).seed == 0


@pytest.mark.parametrize(
    ("resumed", "params", "reason"),
    [
        ((), {}, None),
        ((5,), {}, None),
        ((5, 0), {}, FinishReason.STOP),
        ((5, 0), {"ignore_eos": True}, None),
        ((5, 9), {"stop_token_ids": frozenset({9}), "ignore_eos": True}, FinishReason.STOP),
        ((5, 5, 5), {}, FinishReason.LENGTH),
        ((5, 5, 0), {}, FinishReason.STOP),
    ],
)
def test_finish_reason_follows_from_the_last_output_token(resumed, params, reason):
    assert make_sequence(resumed=resumed, **params).finish_reason is reason


def test_a_stop_token_in_the_prompt_ends_nothing():
    assert make_sequence(prompt=(1, 0)).finish_reason is None


def test_queue_puts_priority_before_arrival():
    queue = SequenceQueue()
    for number, priority in enumerate([0, 5, 0, -1, 5]):
        queue.add(make_sequence(number=number, priority=priority))

    assert [sequence.request_id for sequence in queue] == [1, 4, 0, 2, 3]
    assert (queue.first.request_id, queue.last.request_id) == (1, 3)


def test_queue_gives_back_an_earlier_arrival_its_place():
    queue = SequenceQueue()
    first, second = make_sequence(number=0), make_sequence(number=1)
    queue.add(second)
    queue.add(first)

    assert list(queue) == [first, second]
    queue.remove(first)
    with pytest.raises(ValueError, match="sequence 0 is not in the queue"):
        queue.remove(first)
