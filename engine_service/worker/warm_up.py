"""Steps run before the first request: they compile kernels and show how much memory is needed."""

from array import array
from dataclasses import replace

from engine_service.config import SchedulerOptions
from engine_service.core.types import StepPlan, int32_array
from kernels.decode_splits import MAX_SEQS
from protos.wire.limits import MAX_LOGPROBS
from protos.wire.sampling_params import SamplingParams, to_record

_ASKED = (
    SamplingParams(top_k=2, logprobs=MAX_LOGPROBS),
    SamplingParams(repetition_penalty=2.0),
    SamplingParams(repetition_penalty=2.0, top_p=0.5),
)
"""Each way through the sampler's kernels, besides the plain one."""
_FEW_ROWS = (2, 3, 4, 8, 16, 32, 64)
"""Rows of one token: for each number up to 64, products are compiled as for one of these."""
_LENGTH_IN_TWO_PARTS = 128
"""Tokens of a sequence whose attention is divided into two parts."""


def warm_up_plans(
    options: SchedulerOptions,
    max_model_len: int,
    *,
    is_largest: bool,
    shared_block_size: int | None = None,
) -> list[StepPlan]:
    """Plans steps over slots that hold no sequence.

    Args:
        options: The limits of a step.
        max_model_len: The limit of a sequence.
        is_largest: Whether to reach those limits; otherwise the steps are as small as possible.
        shared_block_size: Tokens of a block; None if no step comes with shared prefixes.

    Returns:
        Plans with rows of many tokens, of one token, and of both; then with ever more tokens.
    """
    # Each row yields a token, which must fit after those that the row computes.
    max_num_tokens = max_model_len - 1
    num_seqs = min(options.max_num_seqs, options.max_num_batched_tokens)
    small = min(2, max_num_tokens, options.max_num_batched_tokens)
    plans = [_plan([0], [small]), _plan([0], [1])]
    plans += [_plan([0], [1], asked) for asked in _ASKED]
    if num_seqs >= 2 and options.max_num_batched_tokens > small:
        plans.append(_plan([0, 0], [1, small]))
    if is_largest:
        budget = options.max_num_batched_tokens
        last = max_num_tokens - 1
        # Kernels are compiled for tiles that grow in powers of two with these lengths.
        plans += [_plan([0], [length]) for length in _doubling(4, min(budget, max_num_tokens, 256))]
        # Attention of up to MAX_SEQS rows is planned.
        plans += [
            _plan([last] * rows, [1] * rows) for rows in (*_FEW_ROWS, MAX_SEQS) if rows <= num_seqs
        ]
        if shared_block_size is not None and num_seqs >= 2:
            plans += _sharing_plans(num_seqs, max_num_tokens, shared_block_size)
        plans += [
            _plan([0], [min(budget, max_num_tokens)]),
            _plan([0] * num_seqs, [min(budget // num_seqs, max_num_tokens)] * num_seqs),
            # Attention is divided, or not.
            _plan([min(last, _LENGTH_IN_TWO_PARTS - 1)], [1]),
            _plan([last], [1]),
            _plan([last] * num_seqs, [1] * num_seqs),
            *(_plan([last] * num_seqs, [1] * num_seqs, asked) for asked in _ASKED),
        ]
    return plans


def _sharing_plans(num_seqs: int, length: int, block_size: int) -> list[StepPlan]:
    """Plans steps whose rows share a prefix; none if a sequence has no room for a block.

    What each row has alone is divided if rows are few and long, and not if they are many and short.
    """
    sizes = [(num_seqs, length), (2, length), (num_seqs, block_size + 1)]
    return [
        replace(
            _plan([row_length - 1] * num_rows, [1] * num_rows),
            shared_prefixes=int32_array(
                [num_rows, row_length // block_size * block_size, *range(num_rows)]
            ),
        )
        for num_rows, row_length in sizes
        if block_size <= row_length <= length
    ]


def _doubling(first: int, last: int) -> list[int]:
    """Returns first, 2 * first, 4 * first, ... up to `last`."""
    return [first << power for power in range(max(0, last // first).bit_length())]


def _plan(
    num_computed_tokens: list[int],
    num_scheduled_tokens: list[int],
    asked: SamplingParams | None = None,
) -> StepPlan:
    num_rows = len(num_computed_tokens)
    num_new = num_rows if asked else 0
    return StepPlan(
        step_id=-1,
        new_slots=int32_array(list(range(num_new))),
        new_num_tokens=int32_array([1] * num_new),
        new_token_ids=int32_array([0] * num_new),
        new_sampling_records=to_record(asked or SamplingParams(), 0) * num_new,
        block_slots=int32_array(),
        block_indices=int32_array(),
        block_ids=int32_array(),
        slots=int32_array(list(range(num_rows))),
        num_computed_tokens=int32_array(num_computed_tokens),
        num_scheduled_tokens=int32_array(num_scheduled_tokens),
        is_sampled=array("b", [1] * num_rows),
    )
