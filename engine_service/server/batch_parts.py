"""Splits a stream's output into parts that fit the contract's message limits."""

from collections.abc import Iterator

from engine_service.server.output_stream import OutputBatch, PromptLogprobs
from protos.wire.limits import (
    MAX_LOGPROB_CANDIDATES,
    MAX_STEP_EVENTS,
    MAX_STEP_FAILURES,
    MAX_STEP_REQUESTS,
    MAX_STEP_TOKENS,
)


def batch_parts(batch: OutputBatch) -> Iterator[OutputBatch]:
    """Yields the batch unchanged if it fits, else its parts.

    They are admissions, logprobs of prompts, tokens with their logprobs, then ends.
    """
    if (
        len(batch.handles) <= MAX_STEP_REQUESTS
        and len(batch.token_ids) <= MAX_STEP_TOKENS
        and len(batch.admissions) <= MAX_STEP_EVENTS
        and len(batch.finishes) <= MAX_STEP_EVENTS
        and len(batch.failures) <= MAX_STEP_FAILURES
        and (not (batch.logprobs or batch.prompt_logprobs) or _logprobs_fit(batch))
    ):
        yield batch
        return
    for start in range(0, len(batch.admissions), MAX_STEP_EVENTS):
        yield OutputBatch(admissions=batch.admissions[start : start + MAX_STEP_EVENTS])
    yield from _prompt_parts(batch)
    yield from _token_parts(batch)
    for start in range(0, len(batch.finishes), MAX_STEP_EVENTS):
        yield OutputBatch(finishes=batch.finishes[start : start + MAX_STEP_EVENTS])
    for start in range(0, len(batch.failures), MAX_STEP_FAILURES):
        yield OutputBatch(failures=batch.failures[start : start + MAX_STEP_FAILURES])


def _logprobs_fit(batch: OutputBatch) -> bool:
    prompts = [prompt.logprobs for prompt in batch.prompt_logprobs.values()]
    candidates = [*batch.logprobs.values(), *prompts]
    return (
        len(batch.logprobs) <= MAX_STEP_EVENTS
        and len(prompts) <= MAX_STEP_EVENTS
        and len(batch.token_ids) + sum(map(len, prompts)) <= MAX_STEP_TOKENS
        and sum(len(logprobs.top_token_ids) for logprobs in candidates) <= MAX_LOGPROB_CANDIDATES
    )


class _Room:
    """What is left of the bounds of one part."""

    def __init__(self) -> None:
        self._num_requests = MAX_STEP_REQUESTS
        self._num_reports = MAX_STEP_EVENTS
        self._num_tokens = MAX_STEP_TOKENS
        self._num_candidates = MAX_LOGPROB_CANDIDATES

    def take(self, num_tokens: int, width: int | None) -> int:
        """Takes room for tokens of one more request; returns for how many.

        Args:
            num_tokens: Tokens to send.
            width: Likeliest tokens to send with each; None without logprobs.
        """
        if not self._num_requests or (width is not None and not self._num_reports):
            return 0
        taken = min(num_tokens, self._num_tokens)
        if width:
            taken = min(taken, self._num_candidates // width)
        if taken:
            self._num_requests -= 1
            self._num_tokens -= taken
            if width is not None:
                self._num_reports -= 1
                self._num_candidates -= taken * width
        return taken


def _prompt_parts(batch: OutputBatch) -> Iterator[OutputBatch]:
    room = _Room()
    part: dict[int, PromptLogprobs] = {}
    for handle, prompt in batch.prompt_logprobs.items():
        logprobs = prompt.logprobs
        start = 0
        while start < len(logprobs):
            taken = room.take(len(logprobs) - start, logprobs.width)
            if not taken:
                yield OutputBatch(prompt_logprobs=part)
                room, part = _Room(), {}
                continue
            part[handle] = PromptLogprobs(
                first_position=prompt.first_position + start,
                logprobs=logprobs.part(start, start + taken),
            )
            start += taken
    if part:
        yield OutputBatch(prompt_logprobs=part)


def _token_parts(batch: OutputBatch) -> Iterator[OutputBatch]:
    room, part = _Room(), OutputBatch()
    end = 0
    for handle, count in zip(batch.handles, batch.token_counts, strict=True):
        logprobs = batch.logprobs.get(handle)
        start = 0
        while start < count:
            taken = room.take(count - start, None if logprobs is None else logprobs.width)
            if not taken:
                yield part
                room, part = _Room(), OutputBatch()
                continue
            part.handles.append(handle)
            part.token_counts.append(taken)
            part.token_ids.extend(batch.token_ids[end : end + taken])
            if logprobs is not None:
                part.logprobs[handle] = logprobs.part(start, start + taken)
            start += taken
            end += taken
    if part:
        yield part
