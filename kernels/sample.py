"""Draws one token per row of logits."""

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from kernels import sampling_reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs

# As many as an H200 runs at a time: their registers leave room for 32 on each multiprocessor.
_NUM_WARPS = 32 * 132
PHILOX_ROUNDS = tl.constexpr(sampling_reference.PHILOX_ROUNDS)
LOG2_E = tl.constexpr(math.log2(math.e))
# The interpreter has no instructions of a GPU's.
IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def sample(
    logits: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    columns: Mapping[str, int],
    thresholds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draws one token per row from softmax(logits / temperature).

    The draw of a row is a function of its logits, threshold, temperature, seed, sample and position
    alone.

    Args:
        logits: [num_rows, vocab_size], rows may be strided; -inf hides an entry
        records: [num_slots, num_columns] int64, the sampling parameters of each sequence
        slots: [num_rows] int64, whose record a row follows
        positions: [num_rows] int64, the positions of the tokens drawn
        columns: where a record holds "temperature", as the bits of a float32, "seed" and
            "sample_index". A temperature below `sampling_reference.MIN_TEMPERATURE` takes the
            largest logit, the first of several equal ones.
        thresholds: [num_rows] float32, the least logit that a row may draw; None for all

    Returns:
        [num_rows] int64; -1 if the row is not a distribution: it holds a NaN or +inf, only -inf, or
        the scores overflow

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(logits, records, slots, positions)
    if thresholds is not None:
        check_dtype("thresholds", thresholds, torch.float32)
        check_shape("thresholds", thresholds, logits.shape[0])
    if logits.device.type == "cpu":
        return sampling_reference.sample(logits, records, slots, positions, columns, thresholds)
    return _sample_triton(logits, records, slots, positions, columns, thresholds=thresholds)


def sample_keys(
    logits: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    columns: Mapping[str, int],
    first_id: int,
) -> torch.Tensor:
    """Draws among a part of the vocabulary; the largest key of all parts has the row's token.

    Args:
        logits: [num_rows, size of the part]
        records: as of `sample`
        slots: as of `sample`
        positions: as of `sample`
        columns: as of `sample`
        first_id: the token of the first entry, a multiple of 4

    Returns:
        [num_rows] int64 keys, which `sampling_reference.tokens_of_keys` reads; not to be
        compared with those of a CPU, as a GPU's scores are to base 2

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(logits, records, slots, positions)
    if first_id % 4:
        raise ValueError(f"first_id is {first_id}; expected a multiple of 4")
    if logits.device.type == "cpu":
        return sampling_reference.sample_keys(logits, records, slots, positions, columns, first_id)
    return _sample_triton(logits, records, slots, positions, columns, first_id)


def _check(
    logits: torch.Tensor, records: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
) -> None:
    check_dtype("logits", logits)
    check_shape("logits", logits, None, None)
    check_contiguous_rows("logits", logits)
    if logits.shape[1] == 0:
        raise ValueError("vocab_size is 0; expected at least 1")
    check_dtype("records", records, torch.int64)
    check_shape("records", records, None, None)
    check_contiguous_rows("records", records)
    for name, tensor in (("slots", slots), ("positions", positions)):
        check_dtype(name, tensor, torch.int64)
        check_shape(name, tensor, logits.shape[0])
        check_contiguous_rows(name, tensor)


def _sample_triton(
    logits: torch.Tensor,
    records: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    columns: Mapping[str, int],
    first_id: int | None = None,
    thresholds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns tokens, or keys if `first_id` is given."""
    num_rows, vocab_size = logits.shape
    drawn = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return drawn
    # Measured on an H200. Of small tiles, more have no token that a threshold lets through.
    tile, num_warps, max_tiles = (2048, 4, 8) if thresholds is None else (512, 1, 16)
    num_tiles = triton.cdiv(vocab_size, tile)
    # All programs of few rows run at a time. Those of many rows are short, to end together.
    num_parts = max(_NUM_WARPS // num_warps // num_rows, triton.cdiv(num_tiles, max_tiles))
    num_parts = min(num_parts, num_tiles)
    best_scores = torch.empty((num_rows, num_parts), dtype=torch.float32, device=logits.device)
    best_ids = torch.empty((num_rows, num_parts), dtype=torch.int32, device=logits.device)
    _part_kernel[(num_rows, num_parts)](
        logits,
        records,
        slots,
        positions,
        logits if thresholds is None else thresholds,
        best_scores,
        best_ids,
        logits.stride(0),
        records.stride(0),
        vocab_size,
        first_id or 0,
        HAS_THRESHOLDS=thresholds is not None,
        TEMPERATURE=columns["temperature"],
        SEED=columns["seed"],
        SAMPLE=columns["sample_index"],
        MIN_TEMPERATURE=sampling_reference.MIN_TEMPERATURE,
        TILE=tile,
        num_warps=num_warps,
        **dependent_launch(logits),
    )
    _best_part_kernel[(num_rows,)](
        best_scores,
        best_ids,
        drawn,
        num_parts,
        MAX_PARTS=triton.next_power_of_2(num_tiles),
        IS_KEY=first_id is not None,
        num_warps=1,
        **dependent_launch(logits),
    )
    return drawn


# The slots may be a part of a larger tensor, whose alignment must not trigger a compilation.
@triton.jit(do_not_specialize_on_alignment=["slots"])
def _part_kernel(
    logits,
    records,
    slots,
    positions,
    thresholds,
    best_scores,
    best_ids,
    logits_stride,
    records_stride,
    vocab_size,
    first_id,
    HAS_THRESHOLDS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SEED: tl.constexpr,
    SAMPLE: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
    TILE: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Finds the best entry of a part of a row, whose tiles are divided among the row's programs."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    record = records + tl.load(slots + row) * records_stride
    temperature = as_float(tl.load(record + TEMPERATURE))
    seed, sample = tl.load(record + SEED), tl.load(record + SAMPLE)
    position = tl.load(positions + row)
    # Each counter of random bits has a group of four entries.
    groups = tl.arange(0, TILE // 4)
    best = tl.full([TILE // 4], float("-inf"), tl.float32)
    # Of a group's best entry: four times its tile, and its place among the four.
    places = tl.zeros([TILE // 4], tl.int32)
    num_tiles = tl.cdiv(vocab_size, TILE)
    for tile in range(part * num_tiles // num_parts, (part + 1) * num_tiles // num_parts):
        # A thread loads no more than the four of a counter at once, so that they stay with it. (In
        # rows with other addresses than multiples of four entries they do not; this is slower.)
        ids = tl.max_contiguous(tile * TILE + tl.arange(0, TILE), 4)
        scores = tl.load(
            logits + row * logits_stride + ids, mask=ids < vocab_size, other=float("-inf")
        )
        scores = scores.to(tl.float32)
        is_drawn = True
        if HAS_THRESHOLDS:
            # NaN is not below it, and still marks the row.
            is_hidden = scores < tl.load(thresholds + row)
            scores = tl.where(is_hidden, float("-inf"), scores)
            # Noise takes most of the time, and few tiles have a token that may be drawn.
            is_drawn = tl.min(is_hidden.to(tl.int32), axis=0) == 0
        even, odd = tl.split(tl.reshape(scores, [TILE // 4, 2, 2]))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        if (temperature >= MIN_TEMPERATURE) & is_drawn:
            a, b, c, d = random_words(seed, sample, position, first_id + tile * TILE, TILE)
            scale = LOG2_E / temperature
            first = first * scale + gumbel_base2(a)
            second = second * scale + gumbel_base2(b)
            third = third * scale + gumbel_base2(c)
            fourth = fourth * scale + gumbel_base2(d)
        best, places = _larger(best, places, first, 4 * tile)
        best, places = _larger(best, places, second, 4 * tile + 1)
        best, places = _larger(best, places, third, 4 * tile + 2)
        best, places = _larger(best, places, fourth, 4 * tile + 3)
    # Whether a NaN wins would depend on the order of the reduction. As +inf, which finite logits
    # never reach, it always wins and marks the row, without a further pass.
    best = tl.where(best == best, best, float("inf"))
    best_of_all = tl.max(best, axis=0)
    best_ids_of_groups = places // 4 * TILE + 4 * groups + places % 4
    best_id = tl.min(tl.where(best == best_of_all, best_ids_of_groups, vocab_size), axis=0)
    tl.store(best_scores + row * num_parts + part, best_of_all)
    tl.store(best_ids + row * num_parts + part, first_id + best_id)


@triton.jit
def _larger(best, places, scores, place) -> tuple[tl.tensor, tl.tensor]:
    """Takes the scores that are larger than the best of the places before, or NaN."""
    places = tl.where(scores > best, place, places)
    return tl.maximum(best, scores, propagate_nan=tl.PropagateNan.ALL), places


# The number of parts follows from that of rows, which must not trigger a compilation.
@triton.jit(do_not_specialize=["num_parts"])
def _best_part_kernel(
    best_scores,
    best_ids,
    drawn,
    num_parts,
    MAX_PARTS: tl.constexpr,
    IS_KEY: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, MAX_PARTS)
    scores = tl.load(
        best_scores + row * num_parts + parts, mask=parts < num_parts, other=float("-inf")
    )
    best, part = tl.max(scores, axis=0, return_indices=True)
    token_id = tl.load(best_ids + row * num_parts + part).to(tl.int64)
    if IS_KEY:
        # As `sampling_reference.sample_keys`.
        bits = (best + 0.0).to(tl.int32, bitcast=True)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        tl.store(drawn + row, (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - token_id))
    else:
        is_distribution = (best > float("-inf")) & (best < float("inf"))
        tl.store(drawn + row, tl.where(is_distribution, token_id, -1))


@triton.jit
def as_float(word) -> tl.tensor:
    """Reads the low half of an int64 as the bits of a float32."""
    return word.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def random_words(
    seed, sample, position, first_id, COUNT: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Returns the bits of COUNT entries from first_id (a multiple of 4) on.

    They are four tensors [COUNT // 4] uint32: of each four entries the first, the second, ...
    See `sampling_reference.philox`. Triton's own multiplies twice, for each half of a product.
    """
    a = (first_id // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    b, c, d = position.to(tl.uint32), (position >> 32).to(tl.uint32), sample.to(tl.uint32)
    key_low, key_high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(PHILOX_ROUNDS):
        product_a, product_c = a.to(tl.uint64) * 0xD2511F53, c.to(tl.uint64) * 0xCD9E8D57
        a = (product_c >> 32).to(tl.uint32) ^ b ^ key_low
        c = (product_a >> 32).to(tl.uint32) ^ d ^ key_high
        b, d = product_c.to(tl.uint32), product_a.to(tl.uint32)
        key_low += 0x9E3779B9
        key_high += 0xBB67AE85
    return a, b, c, d


@triton.jit
def gumbel_base2(bits) -> tl.tensor:
    """Converts 32 random bits to -log2(-log2(1 - u)); see `sampling_reference.gumbel`.

    That is log2(e) times the variable, less a constant that all entries share.
    """
    u = bits.to(tl.float32) * (2.0**-32 - 2.0**-56) + 2.0**-33
    # A factor of -1 becomes a part of what uses it; a minus is an instruction.
    exact = _log2(1.0 - u) * -1.0
    series = u * (LOG2_E + u * (LOG2_E / 2 + u * (LOG2_E / 3 + u * (LOG2_E / 4))))
    return _log2(tl.where(u < 2.0**-5, series, exact)) * -1.0


@triton.jit
def _log2(x) -> tl.tensor:
    """The hardware's logarithm, wrong by 2^-22 near 1 and by a few units of the last place else."""
    if IS_INTERPRETED:
        return tl.log2(x)
    else:  # noqa: RET505 - a branch of the compiler's
        return libdevice.fast_log2f(x)
