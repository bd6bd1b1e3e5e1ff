"""What a plan's sampling records say."""

import numpy as np

from engine_service.core.types import StepPlan
from protos.wire.sampling_params import RECORD_COLUMNS


def new_temperatures(plan: StepPlan) -> list[float]:
    """Returns the temperature of each new slot."""
    column = _records(plan)[:, RECORD_COLUMNS["temperature"]]
    temperatures: list[float] = column.astype(np.int32).view(np.float32).tolist()
    return temperatures


def new_seeds(plan: StepPlan) -> list[int]:
    """Returns the seed of each new slot."""
    seeds: list[int] = _records(plan)[:, RECORD_COLUMNS["seed"]].tolist()
    return seeds


def new_logprobs(plan: StepPlan, name: str = "logprobs") -> list[int]:
    """Returns how many logprobs each new slot asks for; -1 for none."""
    counts: list[int] = _records(plan)[:, RECORD_COLUMNS[name]].tolist()
    return counts


def _records(plan: StepPlan) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    words = np.asarray(plan.new_sampling_records, dtype=np.int64)
    return words.reshape(-1, len(RECORD_COLUMNS))
