"""What a worker keeps of each running sequence, and a step's inputs made of it.

One copy per step brings the plan to the device; everything else happens there.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from engine_service.core.types import StepPlan
from engine_service.layers.attention import AttentionMetadata, DecodeMetadata, PrefillMetadata

_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInputs:
    """The rows of a step that yield a token, in the order of the plan."""

    slots: torch.Tensor
    """[num_sampled] int64."""
    token_indices: torch.Tensor
    """[num_sampled] int64: which of the step's tokens is the row's last."""
    positions: torch.Tensor
    """[num_sampled] int64: where in its sequence the new token goes."""
    temperatures: torch.Tensor
    """[num_sampled] float32."""
    seeds: torch.Tensor
    """[num_sampled] int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """A step as the model sees it."""

    input_ids: torch.Tensor
    """[num_tokens] int32."""
    positions: torch.Tensor
    """[num_tokens] int64."""
    metadata: AttentionMetadata
    sampling: SamplingInputs | None
    """None if no row yields a token."""


class InputBatch:
    """Per slot: tokens, block table row and sampling parameters, on the device."""

    def __init__(
        self, *, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device
    ) -> None:
        self._block_size = block_size
        self._device = device
        max_blocks_per_seq = -(-max_model_len // block_size)
        with device:
            self._tokens = torch.zeros(max_num_seqs, max_model_len, dtype=torch.int32)
            self._block_table = torch.zeros(max_num_seqs, max_blocks_per_seq, dtype=torch.int32)
            self._temperatures = torch.zeros(max_num_seqs, dtype=torch.float32)
            self._seeds = torch.zeros(max_num_seqs, dtype=torch.int64)

    def prepare(self, plan: StepPlan) -> StepInputs:
        """Applies a plan's changes and builds its inputs. Enqueues work and waits for nothing."""
        rows = _Rows.of(plan)
        sent = _SentPlan.send(plan, rows, self._device)
        if plan.new_slots:
            self._fill_slots(sent)
        if plan.block_slots:
            self._block_table[sent.block_slots, sent.block_indices] = sent.block_ids.int()
        return self._build(rows, sent)

    def append_sampled(self, sampling: SamplingInputs, token_ids: torch.Tensor) -> None:
        """Writes each new token, [num_sampled] int64, behind its slot's tokens."""
        self._tokens[sampling.slots, sampling.positions] = token_ids.int()

    def _fill_slots(self, sent: "_SentPlan") -> None:
        rows, columns = _spread(sent.new_num_tokens, sent.new_token_ids.numel())
        self._tokens[sent.new_slots[rows], columns] = sent.new_token_ids.int()
        self._temperatures[sent.new_slots] = sent.new_temperatures.float()
        self._seeds[sent.new_slots] = sent.new_seeds

    def _build(self, rows: "_Rows", sent: "_SentPlan") -> StepInputs:
        token_rows, offsets = _spread(sent.query_lens, rows.num_tokens)
        positions = sent.num_computed[token_rows] + offsets
        token_slots = sent.slots[token_rows]
        blocks = self._block_table[token_slots, positions // self._block_size]
        slot_mapping = blocks.long() * self._block_size + positions % self._block_size
        seq_lens = sent.num_computed + sent.query_lens
        return StepInputs(
            input_ids=self._tokens[token_slots, positions],
            positions=positions,
            metadata=self._metadata(rows, sent, slot_mapping, seq_lens.int()),
            sampling=self._sampling(sent, seq_lens),
        )

    def _metadata(
        self,
        rows: "_Rows",
        sent: "_SentPlan",
        slot_mapping: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> AttentionMetadata:
        num_decodes = rows.num_decodes
        # Whole rows: a kernel then sees one stride in all steps.
        block_table = self._block_table[sent.slots]  # [num_rows, max_blocks_per_seq]
        decode = prefill = None
        if num_decodes > 0:
            decode = DecodeMetadata(
                block_table=block_table[:num_decodes],
                seq_lens=seq_lens[:num_decodes],
                max_seq_len=int(rows.num_computed[:num_decodes].max()) + 1,
            )
        if num_decodes < len(rows.slots):
            prefill = PrefillMetadata(
                block_table=block_table[num_decodes:],
                # Every row of the first part is one token.
                query_start_loc=(sent.query_start_loc[num_decodes:] - num_decodes).int(),
                seq_lens=seq_lens[num_decodes:],
                max_query_len=int(rows.query_lens[num_decodes:].max()),
            )
        return AttentionMetadata(
            slot_mapping=slot_mapping, num_decodes=num_decodes, decode=decode, prefill=prefill
        )

    def _sampling(self, sent: "_SentPlan", seq_lens: torch.Tensor) -> SamplingInputs | None:
        if sent.sampled_rows.numel() == 0:
            return None
        slots = sent.slots[sent.sampled_rows]
        return SamplingInputs(
            slots=slots,
            token_indices=sent.query_start_loc[sent.sampled_rows + 1] - 1,
            positions=seq_lens[sent.sampled_rows],
            temperatures=self._temperatures[slots],
            seeds=self._seeds[slots],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of a plan on the host, those of one token first."""

    slots: _Integers
    num_computed: _Integers
    query_lens: _Integers
    query_start_loc: _Integers
    sampled_rows: _Integers
    """Which rows yield a token, in the order of the plan."""
    num_decodes: int

    @property
    def num_tokens(self) -> int:
        return int(self.query_start_loc[-1])

    @classmethod
    def of(cls, plan: StepPlan) -> Self:
        scheduled = np.asarray(plan.num_scheduled_tokens, dtype=np.int64)
        order = np.argsort(scheduled > 1, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        query_lens = scheduled[order]
        return cls(
            slots=np.asarray(plan.slots, dtype=np.int64)[order],
            num_computed=np.asarray(plan.num_computed_tokens, dtype=np.int64)[order],
            query_lens=query_lens,
            query_start_loc=np.concatenate((np.zeros(1, dtype=np.int64), query_lens.cumsum())),
            sampled_rows=place[np.flatnonzero(np.asarray(plan.is_sampled))],
            num_decodes=int((scheduled == 1).sum()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SentPlan:
    """A plan on the device: views of one packed int64 tensor. Names as in StepPlan."""

    new_slots: torch.Tensor
    new_num_tokens: torch.Tensor
    new_token_ids: torch.Tensor
    new_temperatures: torch.Tensor
    """float64, for it is packed among int64."""
    new_seeds: torch.Tensor
    block_slots: torch.Tensor
    block_indices: torch.Tensor
    block_ids: torch.Tensor
    slots: torch.Tensor
    num_computed: torch.Tensor
    query_lens: torch.Tensor
    query_start_loc: torch.Tensor
    sampled_rows: torch.Tensor

    @classmethod
    def send(cls, plan: StepPlan, rows: _Rows, device: torch.device) -> Self:
        arrays = {
            "new_slots": np.asarray(plan.new_slots),
            "new_num_tokens": np.asarray(plan.new_num_tokens),
            "new_token_ids": np.asarray(plan.new_token_ids),
            "new_temperatures": np.asarray(plan.new_temperatures, np.float64).view(np.int64),
            "new_seeds": np.asarray(plan.new_seeds),
            "block_slots": np.asarray(plan.block_slots),
            "block_indices": np.asarray(plan.block_indices),
            "block_ids": np.asarray(plan.block_ids),
            "slots": rows.slots,
            "num_computed": rows.num_computed,
            "query_lens": rows.query_lens,
            "query_start_loc": rows.query_start_loc,
            "sampled_rows": rows.sampled_rows,
        }
        sizes = [len(array) for array in arrays.values()]
        # Pinned memory comes from torch's cache, which gives it out again only after the copy.
        staging = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
        np.concatenate(list(arrays.values()), out=staging.numpy())
        packed = staging.to(device, non_blocking=True)
        views = dict(zip(arrays, torch.split(packed, sizes), strict=True))
        views["new_temperatures"] = views["new_temperatures"].view(torch.float64)
        return cls(**views)


def _spread(lengths: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Enumerates the elements of rows that lie one after another.

    Args:
        lengths: [num_rows] int64, elements of each row.
        total: Their sum, known without asking the device.

    Returns:
        Of each element its row and its index in the row, each [total] int64.
    """
    rows = torch.repeat_interleave(lengths, output_size=total)
    starts = lengths.cumsum(0) - lengths
    indices = torch.arange(total, device=lengths.device) - starts[rows]
    return rows, indices
