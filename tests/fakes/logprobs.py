"""Logprobs as a step's result holds them."""

from array import array
from collections.abc import Sequence

from engine_service.core.logprobs import StepLogprobs

Row = tuple[float, list[int], list[float]]
"""A token's logprob, the likeliest tokens at its position, and theirs."""


def pack(rows: Sequence[Row]) -> StepLogprobs:
    """Packs rows that are equally wide."""
    return StepLogprobs(
        logprobs=array("f", [own for own, _, _ in rows]),
        top_token_ids=array("i", [token_id for _, ids, _ in rows for token_id in ids]),
        top_logprobs=array("f", [logprob for _, _, logprobs in rows for logprob in logprobs]),
    )


def unpack(logprobs: StepLogprobs) -> list[Row]:
    """Returns the rows."""
    width = logprobs.width
    return [
        (
            own,
            logprobs.top_token_ids[index * width : (index + 1) * width].tolist(),
            logprobs.top_logprobs[index * width : (index + 1) * width].tolist(),
        )
        for index, own in enumerate(logprobs.logprobs)
    ]
