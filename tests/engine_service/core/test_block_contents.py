"""The pool tells what its blocks hold, to whom asks."""

from engine_service.core import block_pool
from engine_service.core.block_pool import BlockPool
from engine_service.core.types import CoreInput
from tests.engine_service.core.fake_executor import tokens
from tests.engine_service.core.helpers import make_core, make_request
from tests.engine_service.core.test_block_pool import hashes, register_chain


def make_pool(num_blocks=8):
    return BlockPool(num_blocks, 2, True)


def described(delta):
    contents = delta.contents
    size = len(contents.token_ids) // max(1, len(contents.hashes))
    return [
        (own, parent, list(contents.token_ids[index * size : (index + 1) * size]))
        for index, (own, parent) in enumerate(zip(contents.hashes, contents.parents, strict=True))
    ]


def test_nothing_is_described_unless_asked_for():
    pool = make_pool()
    register_chain(pool, pool.allocate(2), tokens(1, 2, 3, 4), hashes(10, 11))
    assert pool.take_delta().contents is None
    assert not pool.has_undescribed


def test_blocks_of_now_and_later_are_described_once_each_after_its_parent():
    pool = make_pool()
    last = register_chain(pool, pool.allocate(2), tokens(1, 2, 3, 4), hashes(10, 11))
    pool.take_delta()

    pool.describe_blocks(True)
    assert pool.has_undescribed
    assert described(pool.take_delta()) == [(10, 0, [1, 2]), (11, 10, [3, 4])]
    assert not pool.has_undescribed
    pool.register(pool.allocate(1)[0], 12, last, tokens(5, 6))
    assert described(pool.take_delta()) == [(12, 11, [5, 6])]
    assert pool.take_delta().contents is None

    pool.describe_blocks(False)
    pool.register(pool.allocate(1)[0], 13, "", tokens(7, 8))
    assert pool.take_delta().contents is None


def test_a_delta_describes_a_bounded_number_of_blocks(monkeypatch):
    monkeypatch.setattr(block_pool, "MAX_DESCRIBED_TOKENS", 5)
    pool = make_pool()
    register_chain(pool, pool.allocate(5), tokens(*range(10)), hashes(*range(10, 15)))
    pool.describe_blocks(True)
    found = []
    while pool.has_undescribed:
        found.append([own for own, _, _ in described(pool.take_delta())])
    assert found == [[10, 11], [12, 13], [14]]


def test_block_that_is_gone_or_salted_or_lacks_its_parent_is_left_out():
    pool = make_pool(num_blocks=5)
    salted = pool.allocate(1)
    pool.register(salted[0], 9, "secret", tokens(9, 9))
    chain = pool.allocate(3)
    register_chain(pool, chain, tokens(1, 2, 3, 4, 5, 6), hashes(10, 11, 12))
    pool.forget(hashes(11))
    pool.describe_blocks(True)
    assert described(pool.take_delta()) == [(10, 0, [1, 2])]


def test_block_that_is_registered_anew_is_described_anew():
    pool = make_pool()
    table = pool.allocate(1)
    pool.describe_blocks(True)
    pool.register(table[0], 10, "", tokens(1, 2))
    assert described(pool.take_delta()) == [(10, 0, [1, 2])]
    pool.forget(hashes(10))
    pool.register(table[0], 10, "", tokens(1, 2))
    delta = pool.take_delta()
    assert (list(delta.stored), list(delta.removed)) == ([], [])
    assert described(delta) == [(10, 0, [1, 2])]


def test_idle_core_describes_its_blocks_without_waiting_for_a_request(monkeypatch):
    monkeypatch.setattr(block_pool, "MAX_DESCRIBED_TOKENS", 4)
    core = make_core()
    core.add(make_request(1, range(1, 18), 1))
    while core.has_work:
        core.step()
    core.describe_blocks(True)
    found = []
    while core.has_work:
        contents = core.step().cache_delta.contents
        found += list(contents.token_ids)
    assert found == list(range(1, 17))
    assert CoreInput().describes_blocks is None
