"""Training batches: whole conversations packed into rows, made anew for every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from demo_model.conversation import TURN_END, TURN_START, render
from demo_model.generator import conversations
from demo_model.model import IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens; all tensors are [num_rows, row_size] of int32.

    Attributes:
        token_ids: The conversations, one behind the other, and zeros behind the last of a row.
        targets: The next token where it belongs to an answer, else `IGNORED`.
        positions: Within the conversation.
        documents: Number of the conversation within the row.
    """

    token_ids: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor

    def to(self, device: str) -> Self:
        """Copies it to a device, behind what that has to do."""
        return type(self)(*(one.to(device, non_blocking=True) for one in self._tensors))

    def pin_memory(self) -> Self:
        """Puts it where a GPU can fetch it by itself; `DataLoader` calls this."""
        return type(self)(*(one.pin_memory() for one in self._tensors))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.token_ids, self.targets, self.positions, self.documents


class Batches(Dataset[Batch]):
    """The batch of each step; it depends on seed and step alone, not on who makes it when."""

    def __init__(
        self, tokenizer: Tokenizer, *, seed: int, num_steps: int, num_rows: int, row_size: int
    ) -> None:
        """Makes `num_steps` batches; conversations longer than a row are left out."""
        self._tokenizer = tokenizer
        self._seed = seed
        self._num_steps = num_steps
        self._num_rows, self._row_size = num_rows, row_size
        self._turn_start = tokenizer.token_to_id(TURN_START)
        self._turn_end = tokenizer.token_to_id(TURN_END)
        (self._assistant,) = tokenizer.encode("assistant").ids

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self._num_steps:
            raise IndexError(step)
        shape = (self._num_rows, self._row_size)
        token_ids, positions, documents = (np.zeros(shape, dtype=np.int32) for _ in range(3))
        targets = np.full(shape, IGNORED, dtype=np.int32)
        for row, packed in enumerate(self._pack(self._draw(step))):
            end = 0
            for number, ids in enumerate(packed):
                start, end = end, end + len(ids)
                token_ids[row, start:end] = ids
                targets[row, start : end - 1] = self._targets(ids)
                positions[row, start:end] = np.arange(len(ids))
                documents[row, start:end] = number
            documents[row, end:] = len(packed)
        return Batch(*map(torch.from_numpy, (token_ids, targets, positions, documents)))

    def _draw(self, step: int) -> list[NDArray[np.int32]]:
        """Returns as many tokenized conversations as should fill the rows."""
        drawn: list[NDArray[np.int32]] = []
        num_tokens = 0
        for conversation in conversations(f"{self._seed}-{step}"):
            text = render(conversation.messages)
            ids = np.asarray(self._tokenizer.encode(text).ids, dtype=np.int32)
            if len(ids) > self._row_size:
                continue
            drawn.append(ids)
            num_tokens += len(ids)
            if num_tokens >= self._num_rows * self._row_size:
                return drawn
        raise AssertionError("conversations have no end")

    def _pack(self, drawn: Sequence[NDArray[np.int32]]) -> list[list[NDArray[np.int32]]]:
        """Puts each where most room is, the longest first; the few that do not fit are dropped."""
        rows: list[list[NDArray[np.int32]]] = [[] for _ in range(self._num_rows)]
        room = np.full(self._num_rows, self._row_size)
        for ids in sorted(drawn, key=len, reverse=True):
            row = int(room.argmax())
            if room[row] >= len(ids):
                rows[row].append(ids)
                room[row] -= len(ids)
        return rows

    def _targets(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the next token of all but the last one, or `IGNORED` outside of answers."""
        starts = np.flatnonzero(ids == self._turn_start)
        ends = np.flatnonzero(ids == self._turn_end)
        learnt = np.full(len(ids), IGNORED, dtype=np.int32)
        for start, end in zip(starts, ends, strict=True):
            if ids[start + 1] == self._assistant:
                # Behind "<|im_start|>", "assistant" and the line break; the end is learnt, too.
                learnt[start + 3 : end + 1] = ids[start + 3 : end + 1]
        return learnt[1:]
