"""Step plans written by hand."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine_service.core.logit_edits import LogitEdits, logit_edits
from engine_service.core.types import StepPlan, int32_array
from protos.wire.sampling_params import SamplingParams, to_record


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A slot's sequence: its tokens, its blocks, how it samples."""

    token_ids: Sequence[int]
    block_ids: Sequence[int]
    temperature: float = 0.0
    seed: int = 0
    params: SamplingParams | None = None
    num_prompt_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()

    @property
    def edits(self) -> LogitEdits:
        return logit_edits(
            self.params or SamplingParams(),
            num_prompt_tokens=self.num_prompt_tokens,
            stop_token_ids=self.stop_token_ids,
        )

    @property
    def record(self) -> "array[int]":
        return to_record(
            self.params or SamplingParams(temperature=self.temperature),
            self.seed,
            num_prompt_tokens=self.num_prompt_tokens,
            num_biases=self.edits.num_biases,
            is_restricted=bool(self.edits.allowed),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Computes some tokens of a slot."""

    slot: int
    num_computed_tokens: int
    num_scheduled_tokens: int
    is_sampled: bool = True


def make_plan(rows: Sequence[Row], new: Mapping[int, NewSequence] | None = None) -> StepPlan:
    new = new or {}
    blocks = [
        (slot, index, block_id)
        for slot, sequence in new.items()
        for index, block_id in enumerate(sequence.block_ids)
    ]
    return StepPlan(
        step_id=0,
        new_slots=int32_array(list(new)),
        new_num_tokens=int32_array([len(sequence.token_ids) for sequence in new.values()]),
        new_token_ids=int32_array([t for sequence in new.values() for t in sequence.token_ids]),
        new_sampling_records=array("q", [w for sequence in new.values() for w in sequence.record]),
        new_edits=int32_array(
            [x for slot, seq in new.items() if seq.edits for x in seq.edits.to_record(slot)]
        ),
        block_slots=int32_array([slot for slot, _, _ in blocks]),
        block_indices=int32_array([index for _, index, _ in blocks]),
        block_ids=int32_array([block_id for _, _, block_id in blocks]),
        slots=int32_array([row.slot for row in rows]),
        num_computed_tokens=int32_array([row.num_computed_tokens for row in rows]),
        num_scheduled_tokens=int32_array([row.num_scheduled_tokens for row in rows]),
        is_sampled=array("b", [row.is_sampled for row in rows]),
    )
