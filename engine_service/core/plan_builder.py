"""Builds one step plan."""

from array import array

from engine_service.core.sequence import Sequence
from engine_service.core.types import SlotGrammar, StepPlan, int32_array


class PlanBuilder:
    """Collects the rows of a step and the slot and block changes that they need.

    Attributes:
        sequences: Sequence of each row.
        num_decode_tokens: Tokens of rows past the tokens that the request came with. Rows of
            several tokens with which a preempted sequence catches up are not counted; a last one of
            a single token is.
    """

    __slots__ = (
        "_block_ids",
        "_block_indices",
        "_block_slots",
        "_is_sampled",
        "_new_edits",
        "_new_grammars",
        "_new_num_tokens",
        "_new_sampling_records",
        "_new_slots",
        "_new_token_ids",
        "_num_computed_tokens",
        "_num_scheduled_tokens",
        "_prompt_logprobs",
        "_slots",
        "num_decode_tokens",
        "sequences",
        "step_id",
    )

    def __init__(self, step_id: int) -> None:
        self.step_id = step_id
        self.num_decode_tokens = 0
        self._new_slots: list[int] = []
        self._new_num_tokens: list[int] = []
        self._new_token_ids = int32_array()
        self._new_sampling_records = array("q")
        self._new_edits = int32_array()
        self._new_grammars: list[SlotGrammar] = []
        self._block_slots: list[int] = []
        self._block_indices: list[int] = []
        self._block_ids: list[int] = []
        self.sequences: list[Sequence] = []
        self._slots: list[int] = []
        self._num_computed_tokens: list[int] = []
        self._num_scheduled_tokens: list[int] = []
        self._is_sampled: list[bool] = []
        self._prompt_logprobs: dict[int, int] = {}

    def add_sequence(self, sequence: Sequence) -> None:
        """Tells the ranks of a sequence that was just given its slot and its blocks."""
        self._new_slots.append(sequence.slot)
        self._new_num_tokens.append(len(sequence.token_ids))
        self._new_token_ids.extend(sequence.token_ids)
        self._new_sampling_records.extend(sequence.sampling_record)
        if sequence.logit_edits:
            self._new_edits.extend(sequence.logit_edits.to_record(sequence.slot))
        grammar = sequence.request.sampling_params.grammar
        if grammar is not None:
            self._new_grammars.append(
                SlotGrammar(sequence.slot, grammar, sequence.num_prompt_tokens)
            )
        num_blocks = len(sequence.block_table)
        self._block_slots.extend([sequence.slot] * num_blocks)
        self._block_indices.extend(range(num_blocks))
        self._block_ids.extend(sequence.block_table)

    def add_blocks(self, sequence: Sequence, block_ids: list[int]) -> None:
        """Adds the blocks by which a sequence's table grew."""
        num_blocks = len(sequence.block_table)
        self._block_slots.extend([sequence.slot] * len(block_ids))
        self._block_indices.extend(range(num_blocks - len(block_ids), num_blocks))
        self._block_ids.extend(block_ids)

    def add_row(self, sequence: Sequence, num_tokens: int) -> None:
        """Schedules a sequence's next tokens and advances its position past them."""
        num_computed_tokens = sequence.num_computed_tokens
        if num_computed_tokens >= sequence.num_given_tokens and (
            num_tokens == 1 or num_computed_tokens >= sequence.num_admitted_tokens
        ):
            self.num_decode_tokens += num_tokens
        is_sampled = num_tokens == sequence.num_uncomputed_tokens
        self.sequences.append(sequence)
        self._slots.append(sequence.slot)
        self._num_computed_tokens.append(num_computed_tokens)
        self._num_scheduled_tokens.append(num_tokens)
        self._is_sampled.append(is_sampled)
        sequence.num_computed_tokens = num_computed_tokens + num_tokens
        sequence.num_pending_tokens += is_sampled
        sequence.last_step_id = self.step_id

    def ask_for_prompt_logprobs(self, num_tokens: int) -> None:
        """Asks the last row for the logprobs of prompt tokens, from its second position on."""
        self._prompt_logprobs[len(self._slots) - 1] = num_tokens

    def build(self, shared_prefixes: "array[int] | None") -> StepPlan:
        """Returns the plan, in which running sequences may share prefixes."""
        return StepPlan(
            step_id=self.step_id,
            new_slots=int32_array(self._new_slots),
            new_num_tokens=int32_array(self._new_num_tokens),
            new_token_ids=self._new_token_ids,
            new_sampling_records=self._new_sampling_records,
            new_edits=self._new_edits,
            new_grammars=self._new_grammars,
            block_slots=int32_array(self._block_slots),
            block_indices=int32_array(self._block_indices),
            block_ids=int32_array(self._block_ids),
            slots=int32_array(self._slots),
            num_computed_tokens=int32_array(self._num_computed_tokens),
            num_scheduled_tokens=int32_array(self._num_scheduled_tokens),
            is_sampled=array("b", self._is_sampled),
            num_prompt_logprobs=self._num_prompt_logprobs(),
            shared_prefixes=shared_prefixes,
        )

    def _num_prompt_logprobs(self) -> "array[int] | None":
        if not self._prompt_logprobs:
            return None
        return int32_array([self._prompt_logprobs.get(row, 0) for row in range(len(self._slots))])
