"""Splits a stream's output into parts that fit the contract's message limits."""

from collections.abc import Iterator

from engine_service.server.output_stream import OutputBatch
from protos.wire.limits import (
    MAX_STEP_EVENTS,
    MAX_STEP_FAILURES,
    MAX_STEP_REQUESTS,
    MAX_STEP_TOKENS,
)


def batch_parts(batch: OutputBatch) -> Iterator[OutputBatch]:
    """Yields the batch unchanged if it fits, else its parts: admissions, tokens, then ends."""
    if (
        len(batch.handles) <= MAX_STEP_REQUESTS
        and len(batch.token_ids) <= MAX_STEP_TOKENS
        and len(batch.admissions) <= MAX_STEP_EVENTS
        and len(batch.finishes) <= MAX_STEP_EVENTS
        and len(batch.failures) <= MAX_STEP_FAILURES
    ):
        yield batch
        return
    for start in range(0, len(batch.admissions), MAX_STEP_EVENTS):
        yield OutputBatch(admissions=batch.admissions[start : start + MAX_STEP_EVENTS])
    yield from _token_parts(batch)
    for start in range(0, len(batch.finishes), MAX_STEP_EVENTS):
        yield OutputBatch(finishes=batch.finishes[start : start + MAX_STEP_EVENTS])
    for start in range(0, len(batch.failures), MAX_STEP_FAILURES):
        yield OutputBatch(failures=batch.failures[start : start + MAX_STEP_FAILURES])


def _token_parts(batch: OutputBatch) -> Iterator[OutputBatch]:
    handles: list[int] = []
    token_counts: list[int] = []
    start = end = 0
    for handle, count in zip(batch.handles, batch.token_counts, strict=True):
        remaining = count
        while remaining:
            room = MAX_STEP_TOKENS - (end - start)
            if not room or len(handles) == MAX_STEP_REQUESTS:
                yield OutputBatch(
                    handles=handles, token_counts=token_counts, token_ids=batch.token_ids[start:end]
                )
                handles, token_counts, start = [], [], end
                continue
            taken = min(room, remaining)
            handles.append(handle)
            token_counts.append(taken)
            end += taken
            remaining -= taken
    if handles:
        yield OutputBatch(
            handles=handles, token_counts=token_counts, token_ids=batch.token_ids[start:end]
        )
