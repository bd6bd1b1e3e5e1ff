"""How the sequence of each slot samples: its record and lists on the device, its wants here."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine_service.core.logit_edits import BIAS_FIELDS
from engine_service.core.types import StepPlan
from kernels.logprobs import MAX_TOP
from kernels.sampling_reference import MIN_TEMPERATURE
from kernels.shape_logits import LogitEdits
from protos.wire.limits import (
    MAX_BAD_SEQUENCES,
    MAX_BAD_TOKENS,
    MAX_EOS_TOKEN_IDS,
    MAX_LOGIT_BIASES,
    MAX_STOP_TOKEN_IDS,
)
from protos.wire.sampling_params import RECORD_COLUMNS

_Integers = npt.NDArray[np.int64]

_MAX_BIASES = MAX_LOGIT_BIASES + MAX_BAD_SEQUENCES + MAX_STOP_TOKEN_IDS + MAX_EOS_TOKEN_IDS
_NO_LOGPROBS = -1


class Wants(NamedTuple):
    """What any row of a step asks of the sampler, beyond drawing a token at some temperature."""

    edits: bool = False
    """Some logits are changed, forbidden or penalised."""
    thresholds: bool = False
    """Only the likeliest tokens may be drawn."""
    num_top: int | None = None
    """Logprobs, and of how many likeliest tokens: a power of two or 0. None: of no token."""


NOTHING = Wants()


class SlotSampling:
    """The sampling parameters of all slots.

    Attributes:
        vocab_size: The number of tokens.
        records: [num_slots, len(RECORD_COLUMNS)] int64 on the device.
        edits: The lists on the device.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        """Allocates about 100 KB a slot."""
        self.vocab_size = vocab_size
        self._device = device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        num_words = -(-vocab_size // 32)
        with device:
            self.records = torch.zeros(num_slots, len(RECORD_COLUMNS), dtype=torch.int64)
            self.edits = LogitEdits(
                biases=torch.zeros(num_slots, BIAS_FIELDS, _MAX_BIASES, dtype=torch.int32),
                forbidden=torch.zeros(num_slots, MAX_BAD_TOKENS, dtype=torch.int32),
                allowed=torch.zeros(num_slots, num_words, dtype=torch.int32),
            )
        self._allowed: dict[int, npt.NDArray[np.int32]] = {}
        """The words of slots whose requests allow some tokens only."""
        self._wants_edits = np.zeros(num_slots, dtype=bool)
        self._wants_thresholds = np.zeros(num_slots, dtype=bool)
        self._num_logprobs = np.full(num_slots, _NO_LOGPROBS)
        self._num_prompt_logprobs = np.full(num_slots, _NO_LOGPROBS)

    def fill(self, plan: StepPlan, slots: torch.Tensor, records: torch.Tensor) -> None:
        """Sets what a plan says of its new slots. Does not wait for the device.

        Args:
            plan: The plan.
            slots: [num_new] int64, its new slots on the device.
            records: [num_new * len(RECORD_COLUMNS)] int64, their records on the device.
        """
        self.records[slots] = records.view(-1, len(RECORD_COLUMNS))
        self._note(
            np.asarray(plan.new_slots),
            np.asarray(plan.new_sampling_records).reshape(-1, len(RECORD_COLUMNS)),
        )
        if self._allowed:
            for slot in plan.new_slots:
                self._allowed.pop(slot, None)
        edits = np.asarray(plan.new_edits, dtype=np.int32)
        while len(edits):
            slot, *lengths = edits[:4].tolist()
            ends = np.cumsum([4, *lengths])
            biases, forbidden, allowed = (edits[begin:end] for begin, end in pairwise(ends))
            self._fill_edits(slot, biases, forbidden, allowed)
            edits = edits[ends[-1] :]

    def wants(self, slots: _Integers) -> Wants:
        """Returns what the sequences of some slots ask for together."""
        return Wants(
            edits=bool(self._wants_edits[slots].any()),
            thresholds=bool(self._wants_thresholds[slots].any()),
            num_top=self._num_top(self._num_logprobs[slots]),
        )

    def num_top_of_prompts(self, slots: _Integers) -> int:
        """Returns how many likeliest tokens the prompts of some slots need at each position."""
        return self._num_top(self._num_prompt_logprobs[slots]) or 0

    def _num_top(self, asked: _Integers) -> int | None:
        most = int(asked.max(initial=_NO_LOGPROBS))
        if most == _NO_LOGPROBS:
            return None
        return min(1 << (most - 1).bit_length() if most else 0, MAX_TOP, self.vocab_size)

    def staging(self, num_rows: int) -> torch.Tensor:
        """Returns memory on the host for the masks of some rows, [num_rows, num_words] int32."""
        return self._on_host(num_rows, self.edits.allowed.shape[1])

    def write_masks(self, slots: _Integers, masks: torch.Tensor, ended: _Integers) -> None:
        """Lets slots choose among the tokens of masks, as far as their requests allow them too.

        Args:
            slots: [num_rows].
            masks: From `staging`, which it returns to torch: the bits of the tokens allowed.
            ended: Those of the slots whose text is complete. Nothing else may then keep them from
                an end-of-sequence token.
        """
        if self._allowed:
            words = masks.numpy()
            for row, slot in enumerate(slots.tolist()):
                allowed = self._allowed.get(slot)
                if allowed is not None and slot not in ended:
                    words[row] &= allowed
        self.edits.allowed[self._to_device(slots)] = self._copied_beside(masks)
        if len(ended):
            self.records[self._to_device(ended), RECORD_COLUMNS["num_biases"]] = 0

    def _copied_beside(self, masks: torch.Tensor) -> torch.Tensor:
        """Copies masks to the device while it still computes the logits."""
        if self._copies is None:
            return masks
        with torch.cuda.stream(self._copies):
            copied = masks.to(self._device, non_blocking=True)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._copies)
        # Its memory belongs to the other stream, which must not use it again before this one has.
        copied.record_stream(stream)
        return copied

    def _to_device(self, numbers: _Integers) -> torch.Tensor:
        staging = torch.empty(
            len(numbers), dtype=torch.int64, pin_memory=self._device.type == "cuda"
        )
        staging.numpy()[...] = numbers
        return staging.to(self._device, non_blocking=True)

    def _on_host(self, *sizes: int) -> torch.Tensor:
        # Torch reuses pinned memory only after the copy from it has ended.
        return torch.empty(sizes, dtype=torch.int32, pin_memory=self._device.type == "cuda")

    def _note(self, slots: _Integers, records: _Integers) -> None:
        def column(name: str) -> _Integers:
            return records[:, RECORD_COLUMNS[name]]

        def real(name: str) -> npt.NDArray[np.float32]:
            return column(name).astype(np.int32).view(np.float32)

        self._wants_edits[slots] = (
            (column("num_biases") > 0)
            | (column("is_restricted") != 0)
            | (real("repetition_penalty") != 1)
            | (real("frequency_penalty") != 0)
            | (real("presence_penalty") != 0)
        )
        is_cut = (column("top_k") > 0) & (column("top_k") < self.vocab_size)
        is_cut |= (real("top_p") < 1) | (real("min_p") > 0)
        self._wants_thresholds[slots] = is_cut & (real("temperature") >= MIN_TEMPERATURE)
        self._num_logprobs[slots] = column("logprobs")
        self._num_prompt_logprobs[slots] = column("prompt_logprobs")

    def _fill_edits(
        self,
        slot: int,
        biases: npt.NDArray[np.int32],
        forbidden: npt.NDArray[np.int32],
        allowed: npt.NDArray[np.int32],
    ) -> None:
        by_field = np.ascontiguousarray(biases.reshape(-1, BIAS_FIELDS).T)
        self._copy(by_field, self.edits.biases[slot, :, : by_field.shape[1]])
        self._copy(forbidden, self.edits.forbidden[slot, : len(forbidden)])
        if len(allowed):
            words = self.edits.allowed.shape[1]
            is_allowed = np.zeros(words * 32, dtype=np.uint8)
            is_allowed[allowed] = 1
            packed = np.packbits(is_allowed, bitorder="little").view(np.int32)
            self._allowed[slot] = packed
            self._copy(packed, self.edits.allowed[slot])

    def _copy(self, values: npt.NDArray[np.int32], target: torch.Tensor) -> None:
        staging = self._on_host(*values.shape)
        staging.numpy()[...] = values
        target.copy_(staging, non_blocking=True)
