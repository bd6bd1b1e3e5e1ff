from types import ModuleType

import pytest

from examples.guide.common import QUESTIONS, chat
from examples.guide.step_01_forward import generate, load
from examples.guide.step_04_paged_kv import PagedCache, Sequence

SIZE = 4
MODEL = load()


def computed(cache: PagedCache, num_tokens: int) -> Sequence:
    sequence = Sequence(chat(QUESTIONS[4])[:num_tokens])
    cache.grow(sequence, num_tokens)
    cache.compute(MODEL, [(sequence, num_tokens)])
    return sequence


def extend(cache: PagedCache, sequence: Sequence, count: int) -> list[int]:
    answer = []
    for _ in range(count):
        cache.grow(sequence, len(sequence.token_ids))
        num_new = len(sequence.token_ids) - sequence.num_computed
        answer += cache.compute(MODEL, [(sequence, num_new)])
        sequence.token_ids.append(answer[-1])
    return answer


@pytest.mark.parametrize("num_tokens", [8, 10, 3])
def test_only_full_blocks_are_shared(exercise: ModuleType, num_tokens: int) -> None:
    cache = exercise.SharedCache(MODEL, 16, SIZE)
    first = computed(cache, num_tokens)

    second = cache.fork(first)

    num_full = num_tokens // SIZE
    assert second.token_ids == first.token_ids
    assert second.token_ids is not first.token_ids
    assert second.num_computed == num_tokens
    assert second.block_table is not first.block_table
    assert second.block_table[:num_full] == first.block_table[:num_full]
    assert not {*second.block_table[num_full:]} & {*first.block_table[num_full:]}
    assert len(second.block_table) == len(first.block_table)


def test_a_block_is_free_when_nobody_has_it(exercise: ModuleType) -> None:
    cache = exercise.SharedCache(MODEL, 16, SIZE)
    first = computed(cache, 10)
    second = cache.fork(first)
    third = cache.fork(second)
    owned = [*first.block_table]
    assert len(cache.free) == 16 - 5

    cache.release(first)
    assert len(cache.free) == 16 - 4
    assert not {*cache.free} & {*owned[:2]}
    assert (first.block_table, first.num_computed) == ([], 0)
    cache.release(third)
    assert len(cache.free) == 16 - 3
    cache.release(second)

    assert sorted(cache.free) == [*range(16)]


def test_both_go_on_as_if_alone(exercise: ModuleType) -> None:
    cache = exercise.SharedCache(MODEL, 32, SIZE)
    prompt = chat(QUESTIONS[4])
    first = Sequence([*prompt])
    expected = generate(MODEL, prompt, 8)
    extend(cache, first, 3)
    second = cache.fork(first)
    second.token_ids[-1] = 7  # Another token than the best: from here on, they differ.
    other = generate(MODEL, second.token_ids, 5)

    assert extend(cache, second, 5) == other
    assert extend(cache, first, 5) == expected[3:]
