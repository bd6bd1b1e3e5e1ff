"""Which of several engines gets a request: a simulation that counts tokens and steps (step 14).

A prompt is a list of blocks here, each named by the hash of its tokens and all before (step 6).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from examples.guide.common import bar

BLOCK_SIZE = 16
BUDGET = 64
"""Tokens that an engine computes in a step."""
NUM_ENGINES = 4
NUM_CACHED_BLOCKS = 96
REQUESTS_PER_STEP = 3

Prompt = list[int]


@dataclass
class SimulatedEngine:
    """An engine that computes prompts in the order in which they come, and no answers.

    Attributes:
        cached: The blocks whose keys and values it has; the first one is the next to go.
        queued: Tokens that it has still to compute.
        computed: Tokens that it was given to compute, in all.
        queue_lengths: What was queued before each step.
    """

    cached: dict[int, None] = field(default_factory=dict)
    queued: int = 0
    computed: int = 0
    queue_lengths: list[int] = field(default_factory=list)

    def uncached(self, prompt: Prompt) -> int:
        """Returns how many tokens of a prompt it would have to compute."""
        held = next((i for i, block in enumerate(prompt) if block not in self.cached), len(prompt))
        return (len(prompt) - held) * BLOCK_SIZE

    def add(self, prompt: Prompt) -> int:
        """Takes a prompt; returns after how many steps its first token comes."""
        num_tokens = self.uncached(prompt)
        self.queued += num_tokens
        self.computed += num_tokens
        # The end of a prompt is of no use without its beginning, so it is the first to go.
        for block in reversed(prompt):
            self.cached.pop(block, None)
            self.cached[block] = None
        while len(self.cached) > NUM_CACHED_BLOCKS:
            del self.cached[next(iter(self.cached))]
        return -(-self.queued // BUDGET)

    def step(self) -> None:
        """Computes what a step can."""
        self.queue_lengths.append(self.queued)
        self.queued = max(0, self.queued - BUDGET)


Policy = Callable[[Sequence[SimulatedEngine], Prompt, int], SimulatedEngine]
"""(engines, prompt, number of the request) -> the engine that gets it."""


def round_robin(engines: Sequence[SimulatedEngine], _: Prompt, number: int) -> SimulatedEngine:
    """Each in its turn."""
    return engines[number % len(engines)]


def affinity(engines: Sequence[SimulatedEngine], prompt: Prompt, _: int) -> SimulatedEngine:
    """The one that has most of the prompt; if several have as much, the one with less to do."""
    return min(engines, key=lambda engine: (engine.uncached(prompt), engine.queued))


def least_cost(engines: Sequence[SimulatedEngine], prompt: Prompt, _: int) -> SimulatedEngine:
    """The one that has least to compute before the first token of the answer."""
    return min(engines, key=lambda engine: engine.queued + engine.uncached(prompt))


def workload(num_requests: int = 240) -> list[Prompt]:
    """Returns prompts of 20 blocks. The first 16 are one of 8 texts, half of the time the same."""
    rng = random.Random(0)
    texts = rng.choices(range(8), weights=[7, 1, 1, 1, 1, 1, 1, 1], k=num_requests)
    shared = [[1000 * text + i for i in range(16)] for text in texts]
    own = [[10_000 + 4 * number + i for i in range(4)] for number in range(num_requests)]
    return [[*first, *last] for first, last in zip(shared, own, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """What a policy made of the workload.

    Attributes:
        computed: Tokens that all engines computed.
        waits: After how many steps each request had its first token.
        queues: What each engine had queued before each step.
    """

    computed: int
    waits: list[int]
    queues: list[list[int]]


def simulate(policy: Policy, prompts: list[Prompt]) -> Outcome:
    """Gives all prompts to engines, some in each step."""
    engines = [SimulatedEngine() for _ in range(NUM_ENGINES)]
    waits = []
    for number, prompt in enumerate(prompts):
        waits.append(policy(engines, prompt, number).add(prompt))
        if (number + 1) % REQUESTS_PER_STEP == 0:
            for engine in engines:
                engine.step()
    computed = sum(engine.computed for engine in engines)
    return Outcome(computed, waits, [engine.queue_lengths for engine in engines])


def sparkline(values: Sequence[int], largest: int) -> str:
    """Draws each second value, as a character from low to high."""
    return "".join("·▁▂▃▄▅▆▇█"[-(-8 * value // largest)] for value in values[::2])


def compare_policies() -> None:
    """Prints what each policy costs, and what is queued at each engine over time."""
    prompts, policies = workload(), (round_robin, affinity, least_cost)
    outcomes = {policy.__name__: simulate(policy, prompts) for policy in policies}
    print(f"tokens computed, of {BLOCK_SIZE * sum(map(len, prompts)):,}:")
    for name, outcome in outcomes.items():
        bar(name, outcome.computed, 40_000, f"{outcome.computed:,}")
    print("steps to the first token, mean (most):")
    for name, outcome in outcomes.items():
        mean = sum(outcome.waits) / len(prompts)
        bar(name, mean, 40, f"{mean:.1f} ({max(outcome.waits)})")
    largest = max(max(queue) for outcome in outcomes.values() for queue in outcome.queues)
    print(f"tokens queued at each engine over time, up to {largest:,}:")
    for name, outcome in outcomes.items():
        for label, queue in zip([name, "", "", ""], outcome.queues, strict=True):
            print(f"{label:>15} {sparkline(queue, largest)}")
