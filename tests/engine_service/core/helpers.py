"""Short words for tests of scheduler and core."""

from dataclasses import dataclass, field

from engine_service.config import SchedulerOptions
from engine_service.core.engine_core import EngineCore
from engine_service.core.scheduler import Scheduler
from engine_service.core.types import (
    Request,
    StepResult,
    int32_array,
)
from protos.wire.sampling_params import SamplingParams
from tests.engine_service.core.fake_executor import FakeExecutor, make_info, oracle

MAX_STEPS = 500


@dataclass
class Outcome:
    """All that a core told of some requests."""

    tokens: dict = field(default_factory=dict)
    admissions: dict = field(default_factory=dict)
    finishes: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)

    def take(self, output):
        start = 0
        for request_id, count in zip(output.request_ids, output.token_counts, strict=True):
            new = output.token_ids[start : start + count]
            self.tokens.setdefault(request_id, []).extend(new)
            start += count
        self.admissions.update((admission.request_id, admission) for admission in output.admissions)
        self.finishes.update((finish.request_id, finish) for finish in output.finishes)
        self.steps.append(output.stats)

    def total(self, name):
        return sum(getattr(stats, name) for stats in self.steps)


def make_core(executor=None, *, options=None, depth=1, caching=True, **changes):
    """Returns a core over a fake executor; `changes` are facts of the engine."""
    info = make_info(**changes)
    return EngineCore(
        info,
        SchedulerOptions(
            **{"max_num_seqs": info.max_num_seqs, "max_steps_in_flight": depth, **(options or {})}
        ),
        executor or FakeExecutor(info),
        enable_prefix_caching=caching,
    )


def make_request(request_id, prompt, max_tokens=None, *, resumed=(), priority=0, **params):
    """Returns a request that is greedy and ignores the end-of-sequence token."""
    return Request(
        request_id=request_id,
        prompt_token_ids=int32_array(list(prompt)),
        resume_token_ids=int32_array(list(resumed)),
        priority=priority,
        sampling_params=SamplingParams(
            **{"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens, **params}
        ),
    )


def run_until_idle(core):
    """Steps until nothing is left to do and returns what was told."""
    outcome = Outcome()
    for _ in range(MAX_STEPS):
        if not core.has_work:
            return outcome
        outcome.take(core.step())
    raise AssertionError(f"no end after {MAX_STEPS} steps")


def greedy(prompt, num_tokens, vocab_size=100):
    """Returns what the fake model generates."""
    return oracle(list(prompt), num_tokens, 0, 0.0, vocab_size)


def result_of_rows(*rows):
    """Returns a result with these tokens of each row."""
    return StepResult(
        token_counts=int32_array([len(row) for row in rows]),
        token_ids=int32_array([token_id for row in rows for token_id in row]),
    )


def result_of(plan, token_id=7):
    """Returns the result of an executor that always draws one token."""
    return StepResult(
        token_counts=int32_array(list(plan.is_sampled)),
        token_ids=int32_array([token_id] * sum(plan.is_sampled)),
    )


def make_scheduler(max_num_batched_tokens=64, *, caching=True, **changes):
    info = make_info(**changes)
    options = SchedulerOptions(
        max_num_seqs=info.max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
    )
    return Scheduler(info, options, caching)


def do_step(scheduler, token_id=7):
    """Plans and collects one step; returns the plan."""
    plan = scheduler.schedule()
    scheduler.update(plan, result_of(plan, token_id))
    return plan


def running_ids(scheduler):
    return [sequence.request_id for sequence in scheduler._running]
