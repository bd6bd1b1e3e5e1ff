"""The inputs of a plan that is run as it is, without padding."""

from engine_service.core.types import StepPlan
from engine_service.worker.input_batch import Bounds, InputBatch, StepInputs
from engine_service.worker.rows import Rows


def prepare(batch: InputBatch, plan: StepPlan) -> StepInputs:
    rows = Rows.of(plan)
    return batch.read(batch.apply(plan, rows, rows.num_rows, rows.num_tokens), Bounds.of(rows))
