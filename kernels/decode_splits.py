"""Which split of which sequence each program of decode attention has.

If sequences are of different lengths, the longer ones have more splits, so that all programs have
about as much to read. This is planned on the GPU, which knows the lengths, once for all layers.
"""

import torch
import triton
import triton.language as tl

from kernels.attention_parts import num_further_splits, tokens_read
from kernels.checks import check_dtype, check_shape, check_window
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.gpu import num_multiprocessors

_MIN_TOKENS = 32  # of a share: a small tile of keys
MAX_SEQS = 512
"""Of a plan. More are not divided."""
NUM_COLUMNS = 5
"""Of a program: its sequence, its split, or -1 if it has no work, how many splits the sequence has,
how many those in front of it have, and the tokens of the sequence."""


def split_sequences(
    seq_lens: torch.Tensor, max_seq_len: int, num_kv_heads: int, window: int = 0
) -> torch.Tensor | None:
    """Plans `paged_attention_decode` of sequences without shared prefixes.

    A sequence has as many splits as it has equal shares of all that is read, rounded, and one at
    least: where all are about as long and enough, none is divided.

    Args:
        seq_lens: [num_seqs] int32; 0 has one split
        max_seq_len: an upper bound of seq_lens
        num_kv_heads: key-value heads, for each of which there are as many programs
        window: tokens that each query sees at most; 0 means all

    Returns:
        [num_programs, NUM_COLUMNS] int32, of programs without work only the split; None if all are
        divided equally: on a CPU, and if there is one sequence, more than `MAX_SEQS`, or with
        their heads more than there are counters, or if none is long

    Raises:
        ValueError: an unsupported shape, type or value
    """
    check_dtype("seq_lens", seq_lens, torch.int32)
    check_shape("seq_lens", seq_lens, None)
    check_window(window)
    num_seqs = len(seq_lens)
    if seq_lens.device.type == "cpu" or not 1 < num_seqs <= MAX_SEQS:
        return None
    processors = num_multiprocessors(seq_lens.device)
    num_tokens = tokens_read(max_seq_len, window)
    num_further = num_further_splits(num_seqs, num_kv_heads, num_tokens, processors)
    return _split_sequences_triton(seq_lens, num_further, window) if num_further else None


def _split_sequences_triton(
    seq_lens: torch.Tensor, num_further: int, window: int = 0
) -> torch.Tensor:
    """num_further: programs beyond one for each sequence, at least 1."""
    num_programs = len(seq_lens) + num_further
    programs = torch.empty((num_programs, NUM_COLUMNS), dtype=torch.int32, device=seq_lens.device)
    _split_sequences_kernel[(1,)](
        seq_lens,
        programs,
        len(seq_lens),
        num_further,
        WINDOW=window,
        MAX_SEQS=MAX_SEQS,
        MIN_TOKENS=_MIN_TOKENS,
        NUM_COLUMNS=NUM_COLUMNS,
        num_warps=4,
        **dependent_launch(seq_lens),
    )
    return programs


# Values that change with the batch must not trigger a compilation while serving.
@triton.jit(
    do_not_specialize=["num_seqs", "num_further"], do_not_specialize_on_alignment=["seq_lens"]
)
def _split_sequences_kernel(
    seq_lens,
    programs,
    num_seqs,
    num_further,
    WINDOW: tl.constexpr,
    MAX_SEQS: tl.constexpr,
    MIN_TOKENS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    seqs = tl.arange(0, MAX_SEQS)
    is_seq = seqs < num_seqs
    lens = tl.load(seq_lens + seqs, mask=is_seq, other=0)
    num_read = lens
    if WINDOW > 0:
        num_read = tl.minimum(lens, WINDOW)
    share = tl.maximum(tl.cdiv(tl.sum(num_read), num_further), MIN_TOKENS)
    num_splits = tl.where(is_seq, tl.maximum((num_read + share // 2) // share, 1), 0)
    firsts = tl.cumsum(num_splits) - num_splits
    # Programs without work start first, and end while those with work read their first keys.
    num_unused = num_seqs + num_further - tl.sum(num_splits)
    for start in range(0, num_unused, MAX_SEQS):
        places = start + tl.arange(0, MAX_SEQS)
        tl.store(programs + places * NUM_COLUMNS + 1, -1, mask=places < num_unused)
    for split in range(tl.max(num_splits)):
        is_split = split < num_splits
        places = programs + (num_unused + firsts + split) * NUM_COLUMNS
        tl.store(places, seqs, mask=is_split)
        tl.store(places + 1, split, mask=is_split)
        tl.store(places + 2, num_splits, mask=is_split)
        tl.store(places + 3, firsts, mask=is_split)
        tl.store(places + 4, lens, mask=is_split)
