"""Logprobs of tokens, packed in parallel arrays."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self


def _int32_array() -> "array[int]":
    return array("i")


def _float32_array() -> "array[float]":
    return array("f")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLogprobs:
    """The logprobs of some tokens, and of as many of the likeliest tokens at each position.

    A logprob is the natural logarithm of the probability by the model's own logits.
    """

    logprobs: "array[float]"
    """[num_rows] typecode "f": those of the tokens."""
    top_token_ids: "array[int]"
    """[num_rows * width] the likeliest tokens at each position, from the likeliest on."""
    top_logprobs: "array[float]"
    """[num_rows * width] typecode "f": theirs."""

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def width(self) -> int:
        """How many of the likeliest tokens there are at each position."""
        return len(self.top_token_ids) // len(self.logprobs) if self.logprobs else 0

    @property
    def num_candidates(self) -> int:
        """Tokens whose logprobs are held: the tokens themselves and the likeliest."""
        return len(self.logprobs) + len(self.top_token_ids)

    def part(self, start: int, end: int, width: int | None = None) -> "StepLogprobs":
        """Returns the rows from `start` up to, not including, `end`.

        Args:
            start: The first row.
            end: The row after the last.
            width: Keep this many of the likeliest tokens of each, at most `self.width`. None keeps
                all.
        """
        own = self.width
        kept = own if width is None else min(width, own)
        token_ids, logprobs = _int32_array(), _float32_array()
        if kept == own:
            token_ids += self.top_token_ids[start * own : end * own]
            logprobs += self.top_logprobs[start * own : end * own]
        elif kept:
            for begin in range(start * own, end * own, own):
                token_ids += self.top_token_ids[begin : begin + kept]
                logprobs += self.top_logprobs[begin : begin + kept]
        return StepLogprobs(
            logprobs=self.logprobs[start:end], top_token_ids=token_ids, top_logprobs=logprobs
        )

    def extend(self, later: "StepLogprobs") -> None:
        """Appends rows of the same width."""
        self.logprobs.extend(later.logprobs)
        self.top_token_ids.extend(later.top_token_ids)
        self.top_logprobs.extend(later.top_logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLogprobs:
    """The logprobs of those requests that asked for them, request after request."""

    request_ids: "array[int]" = field(default_factory=lambda: array("q"))
    """[num_requests]"""
    first_positions: "array[int]" = field(default_factory=_int32_array)
    """[num_requests] position of the first token of each, from the start of its prompt."""
    token_counts: "array[int]" = field(default_factory=_int32_array)
    """[num_requests] consecutive tokens of each, at least 1."""
    widths: "array[int]" = field(default_factory=_int32_array)
    """[num_requests] how many of the likeliest tokens there are at each position."""
    logprobs: "array[float]" = field(default_factory=_float32_array)
    """[sum(token_counts)] typecode "f": those of the tokens."""
    top_token_ids: "array[int]" = field(default_factory=_int32_array)
    """[sum(token_counts * widths)] as in `StepLogprobs`."""
    top_logprobs: "array[float]" = field(default_factory=_float32_array)
    """[sum(token_counts * widths)] typecode "f": theirs."""

    def __len__(self) -> int:
        return len(self.request_ids)

    def __iter__(self) -> Iterator[tuple[int, int, StepLogprobs]]:
        """Yields each request's ID, the position of its first token, and the logprobs."""
        row = begin = 0
        for request_id, position, count, width in zip(
            self.request_ids, self.first_positions, self.token_counts, self.widths, strict=True
        ):
            end = begin + count * width
            yield (
                request_id,
                position,
                StepLogprobs(
                    logprobs=self.logprobs[row : row + count],
                    top_token_ids=self.top_token_ids[begin:end],
                    top_logprobs=self.top_logprobs[begin:end],
                ),
            )
            row += count
            begin = end

    def add(self, request_id: int, first_position: int, logprobs: StepLogprobs) -> None:
        """Adds the logprobs of one request's tokens."""
        self.request_ids.append(request_id)
        self.first_positions.append(first_position)
        self.token_counts.append(len(logprobs))
        self.widths.append(logprobs.width)
        self.logprobs.extend(logprobs.logprobs)
        self.top_token_ids.extend(logprobs.top_token_ids)
        self.top_logprobs.extend(logprobs.top_logprobs)

    def or_none(self) -> Self | None:
        """Returns itself, or None if no request is in it."""
        return self if self.request_ids else None
