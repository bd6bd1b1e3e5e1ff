"""Random histories of engines against plain sets, and proof that the check has teeth."""

import random
from collections import Counter, deque

import pytest

from router.placement.prefix_index import PrefixIndex
from router.types.engine_state import CacheUpdate

NAMES = ["a", "b", "c", "d"]
NUM_RUNS = 60
NUM_EVENTS = 300
MAX_BLOCKS = 84
HISTORY = 6


class ModelEngine:
    """An engine's cache as it is, and its messages on their way to the index."""

    def __init__(self, rng):
        self.rng = rng
        self.messages = deque()
        self.restart()

    def restart(self):
        self.epoch = self.rng.getrandbits(64) or 1
        self.sequence_number = 0
        self.held = set()
        self.history = deque(maxlen=HISTORY)
        # The parts of one state are the same whenever it is sent.
        self.part_size = self.rng.randint(1, 8)
        self.is_numbering = self.rng.random() < 0.8
        """Older engines do not number the parts of a snapshot."""

    def change(self, prompt):
        """Stores a prompt's blocks or removes some, and says so; returns the message."""
        if self.rng.random() < 0.6:
            stored = [block for block in prompt if block not in self.held]
            removed = []
        else:
            stored = []
            removed = [block for block in self.held if self.rng.random() < 0.4]
        self.held = (self.held | set(stored)) - set(removed)
        self.sequence_number += 1
        delta = CacheUpdate(
            epoch=self.epoch,
            sequence_number=self.sequence_number,
            stored=stored,
            removed=removed,
        )
        self.history.append(delta)
        return delta

    def connect(self, epoch, sequence_number):
        """Begins a stream from what the index says it holds; returns whether it resumes."""
        oldest = self.sequence_number - len(self.history)
        resumes = epoch == self.epoch and oldest <= sequence_number
        self.messages.clear()
        if resumes:
            self.messages += [d for d in self.history if d.sequence_number > sequence_number]
        else:
            self.messages += self.snapshot()
        return resumes

    def snapshot(self):
        held = sorted(self.held)
        size = self.part_size
        starts = range(0, max(len(held), 1), size)
        return [
            CacheUpdate(
                epoch=self.epoch,
                sequence_number=self.sequence_number,
                stored=held[start : start + size],
                is_snapshot=True,
                is_first=start == 0,
                is_last=start == starts[-1],
                part_number=number if self.is_numbering else 0,
            )
            for number, start in enumerate(starts, start=1)
        ]

    def may_fault(self, message):
        """Whether the index must notice that a message is lost, repeated or out of place."""
        return self.is_numbering or not message.is_snapshot


class Driver:
    """One random fleet; `run` checks after every event what must hold then."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.index = PrefixIndex()
        self.engines = {name: ModelEngine(self.rng) for name in NAMES}
        self.epochs = {}
        """Of the engines in the index, as it was told them."""
        self.reservations = []
        """Engine, which entry of it, prompt, and what the index returned."""
        self.num_entries = Counter()
        """How often each engine was entered anew."""
        self.late = []
        self.counts = Counter()
        self.prompts = self._prompts()

    def run(self, num_events):
        events = [
            *[self.change] * 6,
            *[self.deliver] * 6,
            *[self.reserve] * 2,
            *[self.release] * 2,
            self.lose,
            self.repeat,
            self.swap,
            self.arrive_late,
            self.cut,
            self.restart,
            self.remove,
            self.sweep,
        ]
        for name in NAMES:
            self.join(name)
        for _ in range(num_events):
            self.rng.choice(events)(self.rng.choice(NAMES))
            self.check()
        for name in NAMES:
            self.settle(name)
            self.check()
        self.leave_nothing()

    def _prompts(self):
        """Returns prompts that share prefixes, as hashes that say what comes before them."""
        hashes = {}
        prompts = []
        for _ in range(12):
            tokens = tuple(self.rng.randrange(2) for _ in range(self.rng.randint(1, 7)))
            prefixes = [tokens[: end + 1] for end in range(len(tokens))]
            prompts.append([hashes.setdefault(p, self.rng.getrandbits(64)) for p in prefixes])
        return prompts

    def join(self, name):
        epoch = self.engines[name].epoch
        self.index.add_engine(name, MAX_BLOCKS, epoch)
        self.told(name, epoch)
        self.connect(name)

    def told(self, name, epoch):
        """Notes that the index knows an engine's start; another one voids its reservations."""
        if self.epochs.get(name) != epoch:
            self.epochs[name] = epoch
            self.num_entries[name] += 1

    def connect(self, name):
        is_resumed = self.engines[name].connect(*self.index.position(name))
        self.counts["resumed" if is_resumed else "snapshot"] += 1

    def change(self, name):
        engine = self.engines[name]
        engine.messages.append(engine.change(self.rng.choice(self.prompts)))
        self.late.append((name, engine.messages[-1]))

    def deliver(self, name):
        engine = self.engines[name]
        if name not in self.epochs:
            self.join(name)
        elif engine.messages:
            self.apply(name, engine.messages.popleft())

    def apply(self, name, message):
        if message.is_first and message.epoch != self.epochs[name]:
            self.counts["epoch by snapshot"] += 1
            self.told(name, message.epoch)
        if not self.index.apply(name, message):
            self.counts["gap"] += 1
            self.connect(name)

    def lose(self, name):
        engine = self.engines[name]
        if engine.messages:
            place = self.rng.randrange(len(engine.messages))
            if engine.may_fault(engine.messages[place]):
                self.count("lost", engine.messages[place])
                del engine.messages[place]

    def repeat(self, name):
        engine = self.engines[name]
        if engine.messages:
            place = self.rng.randrange(len(engine.messages))
            message = engine.messages[place]
            if engine.may_fault(message):
                self.count("repeated", message)
                engine.messages.insert(self.rng.randint(place, len(engine.messages)), message)

    def swap(self, name):
        engine = self.engines[name]
        messages = engine.messages
        if len(messages) > 1:
            place = self.rng.randrange(len(messages) - 1)
            if engine.may_fault(messages[place]):
                self.count("swapped", messages[place])
                messages[place], messages[place + 1] = messages[place + 1], messages[place]

    def count(self, fault, message):
        self.counts[f"{fault} {'part' if message.is_snapshot else 'delta'}"] += 1

    def arrive_late(self, _):
        if self.late:
            name, message = self.rng.choice(self.late)
            if name in self.epochs:
                self.apply(name, message)
                self.counts["late"] += 1

    def cut(self, name):
        if name in self.epochs:
            if any(message.is_snapshot for message in self.engines[name].messages):
                self.counts["cut snapshot"] += 1
            self.connect(name)

    def restart(self, name):
        self.engines[name].restart()
        self.engines[name].messages.clear()
        if name in self.epochs:
            # The stream may be back before the engine has been asked who it is.
            self.rng.choice([self.join, self.connect])(name)

    def remove(self, name):
        self.index.remove_engine(name)
        self.epochs.pop(name, None)
        self.engines[name].messages.clear()
        self.counts["removed"] += 1

    def sweep(self, _):
        self.counts["swept"] += 1
        self.index.sweep(self.rng.randint(1, 100))

    def reserve(self, name):
        if name in self.epochs:
            prompt = self.rng.choice(self.prompts)
            reservation = self.index.reserve(name, prompt)
            self.reservations.append((name, self.num_entries[name], prompt, reservation))

    def release(self, _):
        if self.reservations:
            place = self.rng.randrange(len(self.reservations))
            self.index.release(self.reservations.pop(place)[-1])

    def is_current(self, name):
        engine = self.engines[name]
        return self.index.position(name) == (engine.epoch, engine.sequence_number)

    def check(self):
        """Compares some prompts: engines whose stream is not behind must be exactly right."""
        current = [name for name in self.epochs if self.is_current(name)]
        for prompt in self.rng.sample(self.prompts, 3):
            found = self.index.match(prompt)
            assert found.keys() <= self.epochs.keys(), "a removed engine is found"
            for name in current:
                assert found.get(name, 0) == self.num_leading(name, prompt), "another match"
        for name in current:
            held = self.engines[name].held
            assert self.index.num_blocks(name) == len(held), "another number of blocks"

    def reserved(self, name):
        return {
            block
            for owner, entry, blocks, _ in self.reservations
            if (owner, entry) == (name, self.num_entries[name])
            for block in blocks
        }

    def num_leading(self, name, prompt):
        has = self.engines[name].held | self.reserved(name)
        missing = (depth for depth, block in enumerate(prompt) if block not in has)
        return next(missing, len(prompt))

    def settle(self, name):
        """Lets an engine go on, with nothing in its way, until the index is up to date."""
        engine = self.engines[name]
        if name not in self.epochs:
            self.join(name)
        for _ in range(100):
            if self.is_current(name):
                return
            if not engine.messages:
                self.change(name)
            self.deliver(name)
        raise AssertionError("the index does not converge")

    def leave_nothing(self):
        unconfirmed = [self.reserved(name) - self.engines[name].held for name in self.epochs]
        num_speculative = self.index.statistics().num_speculative_entries
        assert num_speculative == sum(map(len, unconfirmed))
        while self.reservations:
            self.release(None)
        while self.index.sweep():
            pass
        statistics = self.index.statistics()
        held = [self.engines[name].held for name in self.epochs]
        assert statistics.num_speculative_entries == 0
        assert statistics.num_rejected_entries == 0
        assert statistics.num_entries == sum(map(len, held))
        assert statistics.num_blocks == len(set().union(*held)), "blocks are left over"


def drive(seeds):
    counts = Counter()
    for seed in seeds:
        driver = Driver(seed)
        try:
            driver.run(NUM_EVENTS)
        except AssertionError as error:
            error.add_note(f"{seed=}")
            raise
        counts += driver.counts
    return counts


def test_index_equals_the_oracle_whatever_happens_to_the_streams():
    counts = drive(range(NUM_RUNS))

    for event in (
        *("resumed", "snapshot", "gap", "late", "lost delta", "repeated delta", "swapped delta"),
        *("lost part", "repeated part", "swapped part"),
        *("cut snapshot", "epoch by snapshot", "removed", "swept"),
    ):
        assert counts[event], f"nothing was ever {event}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_index_equals_the_oracle_in_many_fleets():
    drive(range(1000, 3000))
