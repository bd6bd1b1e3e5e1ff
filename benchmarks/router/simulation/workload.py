"""Who asks for what, and when: conversations drawn from a seed, equal for every policy.

A conversation has turns. Each prompt is all that was said before, with the answers, and a new
message; the next turn comes some seconds of thought after the end of the last answer. So arrivals
of first turns are given, and those of later ones depend on how fast the answers were, as with real
users: a slow fleet is asked less often, which spares bad policies.
"""

import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_SIZE = 64
"""Tokens a block, of every engine."""

_BURST_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How requests are drawn; lengths are medians of log-normal draws, in tokens."""

    num_tenants_per_engine: int = 4
    """Each tenant has a system prompt; 0 means that nothing is shared."""
    tenant_skew: float = 1.0
    """The n-th most active tenant is asked n ** -skew times as often as the first."""
    system_tokens: int = 4000
    message_tokens: int = 800
    output_tokens: int = 150
    mean_turns: float = 5.0
    """Of a geometric distribution."""
    mean_think_seconds: float = 0.5
    burst_share: float = 0.2
    """Of conversations, those that begin in a burst of one tenant."""
    burst_size: int = 8
    spread: float = 0.8
    """Of the logarithms of lengths."""
    max_turn_tokens: int = 6000
    max_conversation_tokens: int = 32_768
    """A turn that would go beyond ends the conversation instead."""


CHAT = Workload()
"""Agents and chats: long system prompts, several turns, some tenants far more active."""

UNIQUE = Workload(num_tenants_per_engine=0, message_tokens=2500, mean_turns=1.0)
"""Single prompts that share nothing."""

LONG_ANSWERS = Workload(
    num_tenants_per_engine=0, message_tokens=2500, output_tokens=500, mean_turns=1.0
)
"""The same with answers that fill a small block pool."""


@dataclass(slots=True, eq=False)
class Request:
    """One turn. What the simulation learns of it is written into it."""

    number: int
    conversation: "Conversation"
    turn: int
    num_prompt_tokens: int
    num_output_tokens: int
    arrival: float = 0.0
    engine: int = -1
    num_cached: int = 0
    """Prompt tokens that the engine found in its cache."""
    first_token: float = math.nan
    finish: float = math.nan

    @property
    def hashes(self) -> "array[int]":
        """Of the full blocks of its conversation to the end of all turns."""
        return self.conversation.hashes


@dataclass(slots=True, eq=False)
class Conversation:
    """Turns of one user."""

    start: float
    hashes: "array[int]"
    thinking: Sequence[float]
    """Seconds before each turn but the first."""
    turns: list[Request]


def draw(
    workload: Workload,
    *,
    num_engines: int,
    num_requests: int,
    requests_per_second: float,
    seed: int,
) -> list[Conversation]:
    """Draws conversations.

    Args:
        workload: How.
        num_engines: Tenants grow with the fleet.
        num_requests: Turns of all conversations together, or a few more.
        requests_per_second: First turns a second, times the mean number of turns.
        seed: Equal seeds give equal conversations.

    Returns:
        Conversations by their start, in seconds from 0.
    """
    drawer = _Drawer(workload, num_engines, seed)
    rng = drawer.rng
    # A burst counts as one arrival of many conversations.
    in_bursts = workload.burst_share / workload.burst_size
    arrivals = 1 - workload.burst_share + in_bursts
    arrivals_per_second = requests_per_second / workload.mean_turns * arrivals
    conversations: list[Conversation] = []
    now, count = 0.0, 0
    while count < num_requests:
        now += rng.expovariate(arrivals_per_second)
        size = workload.burst_size if rng.random() < in_bursts / arrivals else 1
        system = drawer.system()
        for _ in range(size):
            start = now + rng.uniform(0, _BURST_SECONDS)
            conversations.append(drawer.conversation(start, system, count))
            count += len(conversations[-1].turns)
    return sorted(conversations, key=lambda conversation: conversation.start)


class _Drawer:
    def __init__(self, workload: Workload, num_engines: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self._workload = workload
        tenants = range(1, workload.num_tenants_per_engine * num_engines + 1)
        self._shares = [tenant**-workload.tenant_skew for tenant in tenants]
        self._systems = []
        for _ in tenants:
            num_tokens = self._length(workload.system_tokens)
            self._systems.append((num_tokens, self._hashes(num_tokens // BLOCK_SIZE)))

    def system(self) -> "tuple[int, array[int]]":
        """Returns tokens and block hashes of a system prompt, which may be empty."""
        if not self._systems:
            return 0, array("Q")
        return self.rng.choices(self._systems, self._shares)[0]

    def conversation(
        self, start: float, system: "tuple[int, array[int]]", number: int
    ) -> Conversation:
        workload, rng = self._workload, self.rng
        num_turns = 1
        while rng.random() > 1 / workload.mean_turns:
            num_turns += 1
        thinking = [rng.expovariate(1 / workload.mean_think_seconds) for _ in range(num_turns)]
        conversation = Conversation(start=start, hashes=array("Q"), thinking=thinking, turns=[])
        num_tokens, system_hashes = system
        for turn in range(num_turns):
            num_message_tokens = self._length(workload.message_tokens)
            num_output_tokens = self._length(workload.output_tokens)
            num_tokens += num_message_tokens + num_output_tokens
            if num_tokens > workload.max_conversation_tokens:
                break
            conversation.turns.append(
                Request(
                    number=number + turn,
                    conversation=conversation,
                    turn=turn,
                    num_prompt_tokens=num_tokens - num_output_tokens,
                    num_output_tokens=num_output_tokens,
                )
            )
        num_own = num_tokens // BLOCK_SIZE - len(system_hashes)
        conversation.hashes = system_hashes + self._hashes(num_own)
        return conversation

    def _length(self, median: int) -> int:
        drawn = int(self.rng.lognormvariate(math.log(median), self._workload.spread))
        return min(max(1, drawn), self._workload.max_turn_tokens)

    def _hashes(self, count: int) -> "array[int]":
        return array("Q", self.rng.randbytes(8 * count))
