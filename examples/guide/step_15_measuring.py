"""Step 15: measure the engine, and what to distrust in what was measured.

From step 5: `Engine`. From exercise 1: attention without copies.
"""

import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch

from examples.guide.common import END, QUESTIONS, Answers, bar, chat, figure, timed
from examples.guide.solutions.step_01_forward import grouped_attention
from examples.guide.step_01_forward import Model, attention, load
from examples.guide.step_05_continuous_batching import Engine

MAX_TOKENS = 8
PROMPTS = [chat(QUESTIONS[index]) for index in (3, 5, 6)]


@dataclass
class Run:
    """What a load found. Its clock is the engine's: one step is one tick."""

    since_due: list[float] = field(default_factory=list)
    since_sent: list[float] = field(default_factory=list)


def drive(model: Model, due: list[float], connections: int = 1000, stall: range = range(0)) -> Run:
    """Sends a request when one is due and a connection is free, until all are answered.

    Args:
        model: Computes a step a tick, of at most 16 tokens.
        due: When each request is due.
        connections: The most requests under way.
        stall: Ticks at which the engine does nothing.
    """
    engine, run, waiting = Engine(model, num_blocks=256, budget=16), Run(), deque(due)
    sent: dict[int, tuple[float, int, list[int]]] = {}
    tick = 0
    while waiting or sent:
        while waiting and waiting[0] <= tick and len(sent) < connections:
            prompt = PROMPTS[len(waiting) % len(PROMPTS)]
            sent[engine.add(prompt, MAX_TOKENS)] = (waiting.popleft(), tick, [])
        given = engine.step() if tick not in stall else []
        tick += 1
        for request_id, token in given:
            was_due, was_sent, answer = sent[request_id]
            answer.append(token)
            if token == END or len(answer) == MAX_TOKENS:
                del sent[request_id]
                run.since_due.append(tick - was_due)
                run.since_sent.append(tick - was_sent)
    return run


def arrivals(rate: float, number: int) -> list[float]:
    """Returns when requests arrive that know nothing of each other: at random, so many a tick."""
    draw = random.Random(0)
    return list(accumulate(draw.expovariate(rate) for _ in range(number)))


def percentile(values: list[float], percent: int) -> float:
    """Returns the least value that so many percent of all do not exceed."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def milliseconds(function: Callable[..., object], *arguments: object) -> float:
    """Returns how long a call takes."""
    return 1000 * timed(function, *arguments)[1]


def copies() -> list[float]:
    """Copies 64 MiB, several times; returns how long each copy takes."""
    source = torch.ones(2**24)
    target = torch.empty_like(source)
    return [milliseconds(target.copy_, source) for _ in range(10)]


def step_of(model: Model, number: int) -> float:
    """Returns the median time of a step that decodes so many requests."""
    engine = Engine(model, num_blocks=256, budget=256)
    for _ in range(number):
        engine.add(PROMPTS[0], MAX_TOKENS)
    engine.step()
    return statistics.median(milliseconds(engine.step) for _ in range(MAX_TOKENS - 2))


def round_of_pairs() -> tuple[float, float]:
    """Calls two functions in turns; returns the first one's median, and that of the ratios."""
    inputs = torch.randn(1, 8, 32), *torch.randn(2, 1024, 4, 32), torch.ones(1, 1024).bool()
    pairs = [[milliseconds(f, *inputs) for f in (attention, grouped_attention)] for _ in range(21)]
    first = statistics.median(slow for slow, _ in pairs)
    return first, statistics.median(slow / fast for slow, fast in pairs)


@torch.inference_mode()
def main() -> Answers:
    """Measures the same engine in several ways, good and bad."""
    torch.set_num_threads(1)
    model = load()
    copied = copies()
    mean, median = statistics.mean(copied), statistics.median(copied)
    figure("ms of a copy: first, mean, median", f"≈ {copied[0]:.1f}, {mean:.1f}, {median:.1f}")
    num_bytes = sum(weight.nbytes for weight in model.weights.values())
    least = median * num_bytes / 2**27  # A copy reads and writes.
    figure("bytes of weights that a step reads", f"{num_bytes:,}")
    figure("ms in which memory gives them", f"≈ {least:.1f}")
    for number in (1, 8):
        step = step_of(model, number)
        share = f"≈ {step:.1f}, {100 * least / step:.0f} % of the limit"
        figure(f"ms of a step that decodes {number}", share)
    times, ratios = zip(*(round_of_pairs() for _ in range(5)), strict=True)
    figure("ms of a call, in five rounds", f"≈ {min(times):.2f} to {max(times):.2f}")
    figure("its ratio to another, in five rounds", f"≈ {min(ratios):.2f} to {max(ratios):.2f}")

    shallow = replace(model, num_layers=1)  # To count steps, one layer will do.
    most = 40 / max(drive(shallow, [0.0] * 40).since_due)
    figure("requests a step, with 40 there at once", f"{most:.2f}")
    print("\nsteps in which 90 % of 20 and of 60 requests are answered, by requests a step")
    for rate in (0.4, 0.6, 1.2):
        ends = [percentile(drive(shallow, arrivals(rate, n)).since_due, 90) for n in (20, 60)]
        bar(f"{rate}", ends[1], 40, ", ".join(f"{end:.0f}" for end in ends))

    print("\nthe engine stands still for 40 steps; requests that take over 20, median, mean")
    stall = range(40, 80)
    closed = drive(shallow, [0.0] * 40, connections=6, stall=stall).since_sent
    run = drive(shallow, arrivals(0.4, 40), connections=6, stall=stall)
    kinds = {"closed loop": closed, "open, since sent": run.since_sent, "since due": run.since_due}
    for label, values in kinds.items():
        number = sum(value > 20 for value in values)
        middle, mean = statistics.median(values), statistics.mean(values)
        bar(label, number, 40, f"{number}, {middle:.0f}, {mean:.0f}")
    return {}


if __name__ == "__main__":
    main()
