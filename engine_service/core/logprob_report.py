"""Cuts the logprobs of one step into those that each request asked for."""

import math
from array import array
from collections.abc import Iterable, Iterator

from engine_service.core.logprobs import RequestLogprobs, StepLogprobs
from engine_service.core.progress import StepProgress
from engine_service.core.sequence import Sequence, SequenceState
from engine_service.core.types import StepPlan, StepResult, int32_array


def of_tokens(
    sequences: Iterable[Sequence], result: StepResult, progress: StepProgress
) -> RequestLogprobs | None:
    """Returns the logprobs of a step's tokens, or None if no request with new tokens asks.

    Args:
        sequences: The sequence of each row.
        result: What the rows yielded.
        progress: The tokens that were taken from it.

    Raises:
        RuntimeError: A request asks for logprobs, but the result does not have those of its tokens.
    """
    asked = list(_asked_rows(sequences, result, progress))
    if not asked:
        return None
    request_ids, positions, _, counts, widths = zip(*asked, strict=True)
    whole = _whole(result.logprobs, len(result.token_ids), max(widths))
    if sum(counts) < len(whole) or min(widths) < whole.width:
        report = RequestLogprobs()
        for request_id, position, start, count, width in asked:
            report.add(request_id, position, whole.part(start, start + count, width))
        return report
    # Much faster for a large batch in which all ask for the same.
    return RequestLogprobs(
        request_ids=array("q", request_ids),
        first_positions=int32_array(positions),
        token_counts=int32_array(counts),
        widths=int32_array(widths),
        logprobs=whole.logprobs,
        top_token_ids=whole.top_token_ids,
        top_logprobs=whole.top_logprobs,
    )


def _asked_rows(
    sequences: Iterable[Sequence], result: StepResult, progress: StepProgress
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields what the requests that ask for logprobs have got.

    Of each: its ID, the position of its first new token, where it is among all of the result, how
    many it got, and how wide its logprobs are to be.
    """
    taken = iter(zip(progress.request_ids, progress.token_counts, strict=True))
    request_id, num_taken = next(taken, (None, 0))
    start = 0
    for sequence, count in zip(sequences, result.token_counts, strict=True):
        if sequence.request_id == request_id:
            if sequence.num_logprobs is not None:
                position = len(sequence.token_ids) - num_taken
                yield request_id, position, start, num_taken, sequence.num_logprobs
            request_id, num_taken = next(taken, (None, 0))
        start += count


def of_prompts(
    plan: StepPlan, sequences: Iterable[Sequence], result: StepResult
) -> tuple[RequestLogprobs | None, list[Sequence], list[Sequence]]:
    """Takes the logprobs of prompts out of a result; each position is reported once.

    Args:
        plan: The step's plan.
        sequences: The sequence of each row; their `next_scored_position` advances.
        result: What the rows yielded.

    Returns:
        The logprobs, or None if there are none; the sequences that have them; and the sequences
        whose logprobs are NaN, because the model's logits were.

    Raises:
        RuntimeError: The result does not have the logprobs that the plan asks for.
    """
    if not plan.num_prompt_logprobs:
        return None, [], []
    report = RequestLogprobs()
    scored, invalid = [], []
    num_rows = sum(plan.num_prompt_logprobs)
    start = 0
    for sequence, num_computed_tokens, count in zip(
        sequences, plan.num_computed_tokens, plan.num_prompt_logprobs, strict=True
    ):
        if not count:
            continue
        # Computed again after a preemption, these have been reported before.
        skipped = sequence.next_scored_position - (num_computed_tokens + 1)
        if sequence.state is not SequenceState.FINISHED and skipped < count:
            width = sequence.num_prompt_logprobs or 0
            whole = _whole(result.prompt_logprobs, num_rows, width)
            part = whole.part(start + skipped, start + count, width)
            if math.isnan(sum(part.logprobs)):
                invalid.append(sequence)
            else:
                report.add(sequence.request_id, sequence.next_scored_position, part)
                sequence.next_scored_position += len(part)
                scored.append(sequence)
        start += count
    return report.or_none(), scored, invalid


def _whole(logprobs: StepLogprobs | None, num_rows: int, width: int) -> StepLogprobs:
    """Returns a result's logprobs, checked to be as many as its rows and as wide as asked."""
    if logprobs is None or len(logprobs) != num_rows or logprobs.width < width:
        found = "none" if logprobs is None else f"{len(logprobs)} with {logprobs.width} each"
        raise RuntimeError(
            f"a step should have brought logprobs of {num_rows} tokens with the {width} likeliest "
            f"at each position, but brought {found}"
        )
    return logprobs
