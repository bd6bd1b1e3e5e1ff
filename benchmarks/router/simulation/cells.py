"""Which scenarios are run, and what must hold in them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.router.simulation.intervals import Interval, interval
from benchmarks.router.simulation.run import Measures, Scenario
from benchmarks.router.simulation.workload import CHAT, LONG_ANSWERS, UNIQUE

POLICY_NAMES = ("prefix", "least_loaded", "round_robin", "random", "thresholds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A scenario with its names in tables and plots, and the policies it is run with."""

    workload: str
    load: str
    """"low" and "high" are those of the claims; others are for the plot over load."""
    scenario: Scenario
    policies: tuple[str, ...] = POLICY_NAMES

    @property
    def name(self) -> str:
        """Workload, engines and load."""
        return f"{self.workload}, {self.scenario.num_engines} engines, {self.load}"


def _cells() -> list[Cell]:
    few = Scenario(workload=CHAT, num_engines=8, requests_per_second=1.5, num_requests=1200)
    many = replace(few, num_engines=64, num_requests=3000)
    cells = []
    for base in few, many:
        for load, rate in (("low", 1.5), ("high", 6.0)):
            scenario = replace(base, requests_per_second=rate)
            if base is few and load == "low":
                # The differences are small here: more requests tell them from chance.
                scenario = replace(scenario, num_requests=2400)
            policies = (*POLICY_NAMES, "no_decode") if base is few else POLICY_NAMES
            cells.append(Cell(workload="chat", load=load, scenario=scenario, policies=policies))
        for load, rate in (("low", 2.0), ("high", 8.0)):
            scenario = replace(base, workload=UNIQUE, requests_per_second=rate)
            cells.append(Cell(workload="unique", load=load, scenario=scenario))
    for rate in 3.0, 9.0:
        scenario = replace(few, requests_per_second=rate)
        cells.append(Cell(workload="chat", load=f"{rate}/s", scenario=scenario))
    for rate in 4.0, 6.0:
        scenario = replace(few, workload=UNIQUE, requests_per_second=rate)
        cells.append(Cell(workload="unique", load=f"{rate}/s", scenario=scenario))
    scenario = replace(
        few, workload=LONG_ANSWERS, requests_per_second=3.5, num_blocks=(11_500, 700)
    )
    policies = (*POLICY_NAMES, "no_blocks")
    cells.append(Cell(workload="unequal pools", load="high", scenario=scenario, policies=policies))
    return cells


CELLS = _cells()


def summary(cell: Cell, measures: Mapping[str, Sequence[Measures]]) -> dict[str, Any]:
    """Returns what a cell's runs showed: intervals, and differences from `prefix` by seed.

    Args:
        cell: The cell.
        measures: By policy, one for each seed, in the order of the seeds.
    """
    prefix = measures["prefix"]
    return {
        "workload": cell.workload,
        "load": cell.load,
        "engines": cell.scenario.num_engines,
        "offered_requests_per_second_and_engine": cell.scenario.requests_per_second,
        "policies": {
            policy: {
                name: asdict(interval([asdict(run)[name] for run in runs]))
                for name in Measures.__dataclass_fields__
            }
            for policy, runs in measures.items()
        },
        "prefix_minus_other_ttft_p90": {
            policy: asdict(_difference(prefix, runs))
            for policy, runs in measures.items()
            if policy != "prefix"
        },
    }


def claims(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what must hold of the time to the first token at p90, and whether it does.

    Seeds are compared in pairs: the same conversations under two policies.
    """
    found = []
    for cell in summaries:
        if cell["load"] not in ("low", "high"):
            continue
        for policy, difference in cell["prefix_minus_other_ttft_p90"].items():
            gap = Interval(**difference)
            name = f"{cell['workload']}, {cell['engines']} engines, {cell['load']} load"
            if cell["workload"] == "chat" and policy in POLICY_NAMES:
                claim, holds = f"{name}: prefix is faster than {policy}", gap.high < 0
            elif policy == "least_loaded":
                claim, holds = f"{name}: prefix is not slower than {policy}", gap.low <= 0
            else:
                continue
            found.append({"claim": claim, "holds": holds, "difference_seconds": difference})
    return found


def _difference(prefix: Sequence[Measures], other: Sequence[Measures]) -> Interval:
    return interval([a.ttft_p90 - b.ttft_p90 for a, b in zip(prefix, other, strict=True)])
