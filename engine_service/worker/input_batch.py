"""The worker's state of each running sequence, and the inputs of a step built from it.

One copy per step brings the plan to the device; everything else happens there.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from engine_service.core.types import StepPlan
from engine_service.layers.attention import AttentionMetadata, DecodeMetadata, PrefillMetadata
from engine_service.worker.prefix_tiles import PrefixTiles, unpack
from engine_service.worker.rows import DeviceRows, Rows
from engine_service.worker.slot_sampling import NOTHING, SlotSampling, Wants
from kernels.shape_logits import LogitEdits
from kernels.slots import SlotRows, append_tokens, read_slots

_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInputs:
    """The rows of a step that yield a token, in the order of the plan."""

    slots: torch.Tensor
    """[num_sampled] int64."""
    token_indices: torch.Tensor | None
    """[num_sampled] int64: index of the row's last token in the step. None: all, in order."""
    positions: torch.Tensor
    """[num_sampled] int64: position of the new token in its sequence; 0 if none is wanted."""
    records: torch.Tensor
    """[num_slots, len(RECORD_COLUMNS)] int64: the sampling parameters of all slots."""
    edits: LogitEdits
    """The lists of all slots."""
    tokens: torch.Tensor
    """[num_slots, max_model_len] int32: the tokens of all slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringInputs:
    """The tokens of prompts whose logprobs a step must bring, in the order of the plan."""

    token_indices: torch.Tensor
    """[num_scored] int64: index in the step of the token before each."""
    token_ids: torch.Tensor
    """[num_scored] int64."""
    num_top: int
    """Likeliest tokens to list at each position."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the host must know about a step to launch its kernels."""

    num_tokens: int
    max_query_len: int
    """Upper bound of the tokens of a row."""
    max_decode_seq_len: int
    """Upper bound of the lengths of sequences that compute one token; 0 if there are none."""
    has_prefills: bool
    """Whether sequences may compute several tokens."""

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """Returns the bounds of rows without padding."""
        num_decodes = rows.num_decodes
        return cls(
            num_tokens=rows.num_tokens,
            max_query_len=int(np.diff(rows.query_start_loc).max()),
            max_decode_seq_len=int(rows.num_computed[:num_decodes].max()) + 1 if num_decodes else 0,
            has_prefills=num_decodes < rows.num_rows,
        )


class InputBatch:
    """Per slot: tokens, block table row and sampling parameters, on the device.

    Attributes:
        sampling: The sampling parameters.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.device = device
        self._block_size = block_size
        max_blocks_per_seq = -(-max_model_len // block_size)
        with device:
            self._tokens = torch.zeros(max_num_seqs, max_model_len, dtype=torch.int32)
            self._block_table = torch.zeros(max_num_seqs, max_blocks_per_seq, dtype=torch.int32)
        self.sampling = SlotSampling(max_num_seqs, vocab_size, device)

    def apply(
        self,
        plan: StepPlan,
        rows: Rows,
        num_rows: int,
        num_tokens: int,
        prefixes: PrefixTiles | None = None,
    ) -> DeviceRows:
        """Applies a plan's changes and copies its rows to the device. Does not wait.

        Args:
            plan: The plan.
            rows: Its rows.
            num_rows: Rows with padding.
            num_tokens: Tokens with padding.
            prefixes: What its rows share and shall read once.
        """
        packed_rows = rows.packed(num_rows, num_tokens)
        if prefixes is not None:
            packed_rows = np.concatenate((packed_rows, prefixes.packed(num_rows)))
        sent = _SentPlan.send(plan, rows, packed_rows, self.device)
        if plan.new_slots:
            self._fill_slots(sent)
            self.sampling.fill(plan, sent.new_slots, sent.new_sampling_records)
        if plan.block_slots:
            self._block_table[sent.block_slots, sent.block_indices] = sent.block_ids.int()
        return DeviceRows(packed=sent.rows, num_rows=num_rows, sampled_rows=sent.sampled_rows)

    def wants(self, rows: Rows) -> Wants:
        """Returns what the rows that yield a token ask of the sampler."""
        if not len(rows.sampled_rows):
            return NOTHING
        return self.sampling.wants(rows.slots[rows.sampled_rows])

    def scoring(self, plan: StepPlan, rows: Rows) -> ScoringInputs | None:
        """Returns which tokens of prompts must be scored, or None. Call it after `apply`."""
        if not plan.num_prompt_logprobs:
            return None
        counts = np.asarray(plan.num_prompt_logprobs, dtype=np.int64)
        scored = np.repeat(rows.place, counts)  # [num_scored] rows
        offsets = np.arange(len(scored)) - np.repeat(counts.cumsum() - counts, counts)
        slots = rows.slots[scored]
        arrays = np.stack(
            (
                rows.query_start_loc[scored] + offsets,
                slots,
                rows.num_computed[scored] + offsets + 1,
            )
        )
        on_device = torch.from_numpy(arrays).to(self.device)
        token_indices, on_slots, positions = on_device
        return ScoringInputs(
            token_indices=token_indices,
            token_ids=self._tokens[on_slots, positions].long(),
            num_top=self.sampling.num_top_of_prompts(slots),
        )

    def read(self, rows: DeviceRows, bounds: Bounds) -> StepInputs:
        """Builds the inputs of a step whose changes were applied. Does not wait."""
        read = read_slots(
            self._tokens,
            self._block_table,
            rows.slots,
            rows.num_computed,
            rows.query_start_loc,
            rows.is_decode,
            rows.is_sampled,
            bounds.num_tokens,
            bounds.max_query_len,
            self._block_size,
        )
        decode = prefill = None
        if bounds.max_decode_seq_len:
            prefixes = rows.packed_prefixes
            decode = DecodeMetadata(
                seq_lens=read.decode_seq_lens,
                max_seq_len=bounds.max_decode_seq_len,
                shared=None if prefixes is None else unpack(prefixes, rows.num_rows),
            )
        if bounds.has_prefills:
            prefill = PrefillMetadata(
                query_start_loc=rows.prefill_start_loc.int(),
                seq_lens=read.seq_lens,
                max_query_len=bounds.max_query_len,
            )
        return StepInputs(
            input_ids=read.input_ids,
            positions=read.positions,
            metadata=AttentionMetadata(
                cache_locs=read.cache_locs,
                block_table=read.block_table,
                decode=decode,
                prefill=prefill,
            ),
            sampling=self._sampled(rows, read, bounds),
        )

    def append_sampled(self, sampling: SamplingInputs, token_ids: torch.Tensor) -> None:
        """Appends each new token, [num_sampled] int64, to its slot's tokens."""
        append_tokens(self._tokens, sampling.slots, sampling.positions, token_ids)

    def _fill_slots(self, sent: "_SentPlan") -> None:
        rows, columns = _spread(sent.new_num_tokens, sent.new_token_ids.numel())
        self._tokens[sent.new_slots[rows], columns] = sent.new_token_ids.int()

    def _sampled(self, rows: DeviceRows, read: SlotRows, bounds: Bounds) -> SamplingInputs | None:
        chosen = rows.sampled_rows
        if chosen is None:
            slots, token_indices = rows.slots, None
            if bounds.has_prefills:
                token_indices = (rows.query_start_loc[1:] - 1).clamp(min=0)
            positions = read.next_positions
        elif chosen.numel() == 0:
            return None
        else:
            slots = rows.slots[chosen]
            token_indices = rows.query_start_loc[chosen + 1] - 1
            positions = read.next_positions[chosen]
        return SamplingInputs(
            slots=slots,
            token_indices=token_indices,
            positions=positions,
            records=self.sampling.records,
            edits=self.sampling.edits,
            tokens=self._tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SentPlan:
    """A plan on the device: views of one packed int64 tensor. Names as in StepPlan."""

    rows: torch.Tensor
    """As `DeviceRows.packed`."""
    sampled_rows: torch.Tensor
    new_slots: torch.Tensor
    new_num_tokens: torch.Tensor
    new_token_ids: torch.Tensor
    new_sampling_records: torch.Tensor
    block_slots: torch.Tensor
    block_indices: torch.Tensor
    block_ids: torch.Tensor

    @classmethod
    def send(cls, plan: StepPlan, rows: Rows, packed_rows: _Integers, device: torch.device) -> Self:
        arrays = {
            "rows": packed_rows,
            "sampled_rows": rows.sampled_rows,
            "new_slots": np.asarray(plan.new_slots),
            "new_num_tokens": np.asarray(plan.new_num_tokens),
            "new_token_ids": np.asarray(plan.new_token_ids),
            "new_sampling_records": np.asarray(plan.new_sampling_records),
            "block_slots": np.asarray(plan.block_slots),
            "block_indices": np.asarray(plan.block_indices),
            "block_ids": np.asarray(plan.block_ids),
        }
        sizes = [len(array) for array in arrays.values()]
        # Torch's cache of pinned memory reuses it only after the copy has ended.
        staging = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
        np.concatenate(list(arrays.values()), out=staging.numpy())
        packed = staging.to(device, non_blocking=True)
        return cls(**dict(zip(arrays, torch.split(packed, sizes), strict=True)))


def _spread(lengths: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Enumerates the elements of rows stored one after another.

    Args:
        lengths: [num_rows] int64, elements of each row.
        total: Their sum, known without reading the device.

    Returns:
        The row of each element and its index in the row, each [total] int64.
    """
    rows = torch.repeat_interleave(lengths, output_size=total)
    starts = lengths.cumsum(0) - lengths
    indices = torch.arange(total, device=lengths.device) - starts[rows]
    return rows, indices
