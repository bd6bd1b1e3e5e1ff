"""SubscribeKvEvents: a subscriber's picture of the cache is the cache's, at any pace."""

import asyncio
import random
from array import array

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2

from engine_service.core.block_pool import BlockPool
from engine_service.core.types import BlockContents, CacheDelta, int32_array
from engine_service.errors import QueueFull
from engine_service.server.vllm import block_mirror
from engine_service.server.vllm.block_mirror import BlockMirror
from engine_service.server.vllm.kv_events import KvEvents
from protos.wire.block_hash import block_digests, low_64_bits_of_all, root_digest
from tests.engine_service.core.fake_executor import tokens
from tests.engine_service.server.harness import read, status_of
from tests.engine_service.server.vllm.client import (
    request,
    running_vllm_engine,
    starting_vllm_engine,
    whole_vllm_engine,
)

SIZE = 2
"""Tokens of a block."""
HIGH = 2**63 + 5
"""A hash that is negative as the protocol sends it."""


def contents(*blocks):
    """Describes blocks of hash, parent and tokens."""
    return BlockContents(
        hashes=array("Q", [own for own, _, _ in blocks]),
        parents=array("Q", [parent for _, parent, _ in blocks]),
        token_ids=int32_array([token for _, _, some in blocks for token in some]),
    )


def delta(*blocks, removed=()):
    return CacheDelta(removed=array("Q", removed), contents=contents(*blocks))


class Picture:
    """What a subscriber knows, who takes no block twice and needs the parent of each."""

    def __init__(self, size=SIZE):
        self._size = size
        self.blocks = {}
        self.sequence_number = None
        self.num_clears = 0

    def take(self, batch):
        if batch.HasField("snapshot") and not batch.snapshot.index:
            assert batch.events[0].WhichOneof("data") == "cleared"
        else:
            assert batch.sequence_number == self.sequence_number + 1
        self.sequence_number = batch.sequence_number
        for event in batch.events:
            getattr(self, event.WhichOneof("data"))(getattr(event, event.WhichOneof("data")))

    def cleared(self, _):
        self.num_clears += 1
        self.blocks = {}

    def removed(self, event):
        for value in event.block_hashes:
            self.blocks.pop(value % 2**64, None)

    def stored(self, event):
        parent = 0
        if event.HasField("parent_block_hash"):
            parent = event.parent_block_hash % 2**64
        for block in event.blocks:
            own = block.block_hash % 2**64
            assert own not in self.blocks
            assert parent == 0 or parent in self.blocks
            assert (block.block_size, event.tier) == (self._size, common_pb2.KV_CACHE_TIER_DEVICE)
            self.blocks[own] = (parent, list(block.token_ids))
            parent = own


async def test_events_have_tokens_and_parents_and_the_core_is_asked_only_meanwhile():
    async with running_vllm_engine() as (engine, stub):
        call = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())
        assert await engine.core.next_describes_blocks()
        picture = Picture()
        first = await read(call)
        picture.take(first)
        assert (first.snapshot.count, first.snapshot.blocks) == (1, 0)

        size = 4  # of the fake model
        engine.core.step(
            contents=contents((HIGH, 0, [1] * size), (7, HIGH, [2] * size), (9, 0, [3] * size))
        )
        batch = await read(call)
        assert batch.sequence_number == first.sequence_number + 1
        chain, other = (event.stored for event in batch.events)
        assert [event.event_id for event in batch.events] == [1, 2]
        assert [block.block_hash for block in chain.blocks] == [HIGH - 2**64, 7]
        assert [list(block.token_ids) for block in chain.blocks] == [[1] * size, [2] * size]
        assert not chain.HasField("parent_block_hash")
        assert [block.block_hash for block in other.blocks] == [9]

        engine.core.step(removed=[7, 8], contents=contents((10, HIGH, [4] * size)))
        batch = await read(call)
        removed, stored = batch.events
        assert list(removed.removed.block_hashes) == [7]
        assert stored.stored.parent_block_hash == HIGH - 2**64

        call.cancel()
        assert await engine.core.next_describes_blocks() is False


async def test_second_subscriber_begins_with_a_snapshot_and_one_that_resumes_does_not():
    async with running_vllm_engine() as (engine, stub):
        first = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())
        start = (await read(first)).sequence_number
        engine.core.step(contents=contents((5, 0, [1] * 4)))
        engine.core.step(contents=contents((6, 5, [2] * 4)))
        await read(first)
        await read(first)

        second = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())
        snapshot = await read(second)
        assert snapshot.sequence_number == start + 2
        assert (snapshot.snapshot.index, snapshot.snapshot.count) == (0, 1)
        assert snapshot.snapshot.blocks == 2
        cleared, stored = snapshot.events
        assert cleared.WhichOneof("data") == "cleared"
        assert [block.block_hash for block in stored.stored.blocks] == [5, 6]

        resumed = stub.SubscribeKvEvents(
            common_pb2.SubscribeKvEventsRequest(start_sequence_number=start + 1)
        )
        batch = await read(resumed)
        assert (batch.sequence_number, batch.HasField("snapshot")) == (start + 2, False)
        for unknown in (1, start + 3):
            call = stub.SubscribeKvEvents(
                common_pb2.SubscribeKvEventsRequest(start_sequence_number=unknown)
            )
            assert (await read(call)).HasField("snapshot")
        engine.core.step(contents=contents((7, 6, [3] * 4)))
        for call in (first, second, resumed):
            assert (await read(call)).sequence_number == start + 3


async def test_subscription_needs_a_model_and_ends_with_the_engine():
    async with starting_vllm_engine() as (_, stub):
        call = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())
        assert (await status_of(call)).reason == "STARTING"
    async with running_vllm_engine() as (engine, stub):
        call = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())
        await read(call)
        assert await engine.metric("cache_watchers") == 1
        waiting = asyncio.ensure_future(engine.server.wait_core_lost())
        engine.core.die()
        assert (await status_of(call)).reason == "ENGINE_FAILED"
        await waiting
        assert await call.code() == grpc.StatusCode.UNAVAILABLE


async def test_blocks_of_a_whole_engine_are_the_prompt_s_and_are_hit_again():
    prompt = list(range(10, 23))
    async with whole_vllm_engine() as (_, stub):
        picture, cached, prefixes = Picture(size=4), [], []
        for _ in range(2):
            # The second one begins with a snapshot of what the first one has left.
            call = stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())
            picture.take(await read(call))
            answer = stub.Generate(request(*prompt, max_tokens=1, stream=False))
            cached.append((await read(answer)).complete.cached_tokens)
            while len(picture.blocks) < 3:
                picture.take(await read(call))
            parent, tokens_found = 0, []
            while found := [own for own, (of, _) in picture.blocks.items() if of == parent]:
                (parent,) = found
                tokens_found += picture.blocks[parent][1]
            prefixes.append(tokens_found)
            call.cancel()
        assert cached == [0, 12]
        assert prefixes == [prompt[:12]] * 2


async def test_slow_subscriber_gets_a_snapshot_instead_of_what_was_dropped():
    mirror = BlockMirror(lambda _: None, max_tokens_per_message=4, max_history_tokens=300)
    changes = mirror.subscribe(0)
    picture, events = Picture(), KvEvents()
    picture.take(events.batch(await anext(changes)))
    for index in range(20):
        # Two blocks, of which the second follows the first, and the last two are gone.
        gone = [2 * index - 1, 2 * index] if index else []
        own = 2 * index + 1
        mirror.apply(delta((own, 0, [own, 0]), (own + 1, own, [own, 1]), removed=gone), SIZE)
        assert len(mirror._history) <= 3
    while picture.blocks.keys() != {39, 40}:
        picture.take(events.batch(await anext(changes)))
    assert picture.num_clears == 2
    assert picture.blocks == {39: (0, [39, 0]), 40: (39, [39, 1])}
    await changes.aclose()


async def test_snapshot_comes_in_numbered_parts_and_leaves_out_what_cannot_be_hit():
    mirror = BlockMirror(lambda _: None, max_tokens_per_message=4)
    first = mirror.subscribe(0)
    await anext(first)
    mirror.apply(delta((1, 0, [1, 1]), (2, 1, [2, 2]), (3, 2, [3, 3]), (4, 0, [4, 4])), SIZE)
    # An unknown parent: the prompt has a salt.
    mirror.apply(delta((5, 99, [5, 5])), SIZE)
    mirror.apply(delta(removed=[2]), SIZE)
    mirror.apply(delta((6, 1, [6, 6])), SIZE)
    second = mirror.subscribe(0)
    parts = [await anext(second), await anext(second)]
    assert [(part.index, part.count, part.num_blocks) for part in parts] == [(0, 2, 3), (1, 2, 3)]
    assert parts[1].sequence_number == parts[0].sequence_number + 1
    assert sorted(block.hash for part in parts for block in part.stored) == [1, 4, 6]
    # Back again, with the block that had lost its parent: everybody can hit it now.
    mirror.apply(delta((2, 1, [2, 2]), (3, 2, [3, 3])), SIZE)
    change = await anext(second)
    assert change.sequence_number == parts[1].sequence_number + 1
    assert (change.removed, [block.hash for block in change.stored]) == ([3], [2, 3])
    await first.aclose()
    await second.aclose()


async def test_mirror_holds_nothing_when_nobody_subscribes():
    asked = []
    mirror = BlockMirror(asked.append, max_tokens_per_message=4)
    mirror.apply(delta((1, 0, [1, 1])), SIZE)
    changes = mirror.subscribe(0)
    last = (await anext(changes)).sequence_number
    mirror.apply(delta((1, 0, [1, 1])), SIZE)
    await changes.aclose()
    assert asked == [True, False]
    assert not mirror._blocks
    assert not mirror._history
    mirror.apply(delta(removed=[1]), SIZE)
    # Whoever comes back may have missed something.
    changes = mirror.subscribe(last + 1)
    assert (await anext(changes)).count == 1
    await changes.aclose()


async def test_subscribers_are_bounded(monkeypatch):
    monkeypatch.setattr(block_mirror, "_MAX_SUBSCRIBERS", 1)
    mirror = BlockMirror(lambda _: None, max_tokens_per_message=4)
    changes = mirror.subscribe(0)
    await anext(changes)
    with pytest.raises(QueueFull, match="1 calls of SubscribeKvEvents are open"):
        await anext(mirror.subscribe(0))
    await changes.aclose()
    again = mirror.subscribe(0)
    await anext(again)
    await again.aclose()


def reachable(pool):
    """Returns the blocks that prompts without a salt can hit, as a picture holds them."""
    found = {}

    def is_hit(block_id):
        parent = pool._parents[block_id]
        if isinstance(parent, str):
            return parent == ""
        return parent in pool._block_of_registration and is_hit(pool._block_of_registration[parent])

    for own, block_id in pool._block_of_hash.items():
        if is_hit(block_id):
            parent = pool._parents[block_id]
            parent_hash = 0
            if not isinstance(parent, str):
                parent_hash = pool._hashes[pool._block_of_registration[parent]]
            found[own] = (parent_hash, list(array("i", pool._tokens[block_id])))
    return found


class Reader:
    """A subscriber of a mirror."""

    def __init__(self, mirror):
        self._mirror = mirror
        self._changes = mirror.subscribe(0)
        self._events = KvEvents()
        self.picture = Picture()

    async def read(self):
        """Reads up to where it would wait."""
        while self.picture.sequence_number != self._mirror._sequence_number:
            async with asyncio.timeout(5):
                self.picture.take(self._events.batch(await anext(self._changes)))

    async def leave(self):
        await self._changes.aclose()


def run_prompt(pool, chance):
    """Computes a random prompt as a scheduler does, and forgets a block now and then."""
    salt = chance.choice(["", "", "", "salt"])
    prompt = tokens(*(chance.randrange(2) for _ in range(SIZE * chance.randint(1, 5))))
    digests = block_digests(root_digest("m", cache_salt=salt), prompt, SIZE)
    chain = low_64_bits_of_all(digests)
    match = pool.match_prefix(prompt + tokens(0), chain, salt)
    pool.touch(match.block_ids)
    num_hits = len(match.block_ids)
    new = pool.allocate(min(len(chain) - num_hits, pool.num_free_blocks))
    parent = match.parent
    for index, block_id in enumerate(new, start=num_hits):
        block = prompt[SIZE * index : SIZE * (index + 1)]
        parent = pool.register(block_id, chain[index], parent, block)
        assert parent is not None
    pool.free([*match.block_ids, *new])
    if chance.random() < 0.05:
        pool.forget(chain[:1])


@pytest.mark.parametrize("seed", range(8))
async def test_pictures_follow_the_pool_through_any_history(seed, monkeypatch):
    monkeypatch.setattr("engine_service.core.block_pool.MAX_DESCRIBED_TOKENS", 3 * SIZE)
    chance = random.Random(seed)
    pool = BlockPool(12, SIZE, True)
    mirror = BlockMirror(pool.describe_blocks, max_tokens_per_message=6, max_history_tokens=400)
    readers = []
    for step in range(300):
        run_prompt(pool, chance)
        mirror.apply(pool.take_delta(), SIZE)
        if step == 290 or (chance.random() < 0.05 and len(readers) < 3):
            readers.append(Reader(mirror))
            await readers[-1].read()
        if step < 290 and readers and chance.random() < 0.03:
            await readers.pop(chance.randrange(len(readers))).leave()
        for reader in readers:
            if chance.random() < 0.2:
                await reader.read()
    while pool.has_undescribed:
        mirror.apply(pool.take_delta(), SIZE)
    expected = reachable(pool)
    assert readers
    assert expected
    for reader in readers:
        await reader.read()
        found = reader.picture.blocks
        assert {own: found.get(own) for own in expected} == expected
        assert found.keys() <= pool.findable_hashes()
        await reader.leave()
