"""The least score that each row may draw: min-p, then top-k, then top-p."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from kernels import sampling_reference
from kernels.candidates import (
    CAPACITY,
    GROUP,
    TILE,
    TOO_MANY,
    kth_largest,
    load_scores,
    ordered,
    store_group_maxima,
    unordered,
    unused_bits,
)
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.sample import as_float

_NUM_LIKELY = 512
"""Candidates for a top-p without top-k; rows whose top_p needs more are searched whole."""
_CHUNK = 4096
_WAYS: tl.constexpr = tl.constexpr(8)
"""Places at which a pass over a whole row looks: three bits of the threshold."""


def sampling_thresholds(
    scores: torch.Tensor, records: torch.Tensor, slots: torch.Tensor, columns: Mapping[str, int]
) -> torch.Tensor:
    """Finds the least score that each row may draw.

    Equal scores are kept or dropped together. Masses are sums of integers, so that a threshold does
    not depend on the order in which the device adds.

    Args:
        scores: [num_rows, vocab_size], rows may be strided
        records: [num_slots, num_columns] int64, the sampling parameters of each sequence
        slots: [num_rows] int64, whose record a row follows
        columns: where a record holds "temperature", "top_k" (0 or less keeps all), "top_p", "min_p"

    Returns:
        [num_rows] float32; -inf where everything is kept, as in rows that are greedy or hold a NaN
        or +inf

    Raises:
        ValueError: an unsupported shape or type
    """
    check_dtype("scores", scores)
    check_shape("scores", scores, None, None)
    check_contiguous_rows("scores", scores)
    check_dtype("records", records, torch.int64)
    if scores.device.type == "cpu":
        return sampling_reference.sampling_thresholds(scores, records, slots, columns)
    return _sampling_thresholds_triton(scores, records, slots, columns)


def _sampling_thresholds_triton(
    scores: torch.Tensor, records: torch.Tensor, slots: torch.Tensor, columns: Mapping[str, int]
) -> torch.Tensor:
    num_rows, vocab_size = scores.shape
    thresholds = torch.empty(num_rows, dtype=torch.float32, device=scores.device)
    if num_rows == 0:
        return thresholds
    num_tiles = triton.cdiv(vocab_size, TILE)
    num_groups = num_tiles * (TILE // GROUP)

    def empty(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty((num_rows, size), dtype=dtype, device=scores.device)

    group_maxima = empty(num_groups, torch.float32)
    bounds = empty(2, torch.float32)
    counts = empty(1, torch.int32)
    chosen = empty(num_groups, torch.int32)
    num_chosen = empty(1, torch.int32)
    candidates = empty(CAPACITY, torch.float32)
    masses = empty(num_tiles, torch.int64)
    given = (scores, records, slots)
    places = {
        "TEMPERATURE": columns["temperature"],
        "TOP_K": columns["top_k"],
        "TOP_P": columns["top_p"],
        "MIN_P": columns["min_p"],
        "MIN_TEMPERATURE": sampling_reference.MIN_TEMPERATURE,
    }
    unused = unused_bits(scores.dtype)
    strides = (scores.stride(0), records.stride(0), vocab_size)
    tiles = {"TILE": TILE, "GROUP": GROUP, "num_warps": 8}
    _group_maxima_kernel[(num_rows, num_tiles)](
        *given, group_maxima, *strides, **places, **tiles, **dependent_launch(scores)
    )
    _floor_kernel[(num_rows,)](
        records,
        slots,
        group_maxima,
        bounds,
        counts,
        chosen,
        num_chosen,
        records.stride(0),
        vocab_size,
        num_groups,
        **places,
        GROUPS=triton.next_power_of_2(num_groups),
        NUM_LIKELY=_NUM_LIKELY,
        TOO_MANY=TOO_MANY,
        UNUSED=unused,
        num_warps=4,
        **dependent_launch(scores),
    )
    _gather_kernel[(num_rows, num_tiles)](
        *given,
        bounds,
        counts,
        chosen,
        num_chosen,
        candidates,
        masses,
        *strides,
        **places,
        **tiles,
        CAPACITY=CAPACITY,
        **dependent_launch(scores),
    )
    _threshold_kernel[(num_rows,)](
        *given,
        bounds,
        counts,
        candidates,
        masses,
        thresholds,
        *strides,
        num_tiles,
        **places,
        CAPACITY=CAPACITY,
        TILES=triton.next_power_of_2(num_tiles),
        TOO_MANY=TOO_MANY,
        UNUSED=unused,
        num_warps=4,
        **dependent_launch(scores),
    )
    _whole_row_kernel[(num_rows,)](
        *given,
        bounds,
        counts,
        thresholds,
        *strides,
        **places,
        TOO_MANY=TOO_MANY,
        CHUNK=_CHUNK,
        UNUSED=unused,
        num_warps=16,
        **dependent_launch(scores),
    )
    return thresholds


@triton.jit
def _limits(
    record,
    vocab_size,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
):
    """Reads a record: temperature, top_k (0 for none), top_p, min_p, and whether any matters."""
    temperature = as_float(tl.load(record + TEMPERATURE))
    top_k = tl.load(record + TOP_K)
    top_k = tl.where((top_k > 0) & (top_k < vocab_size), top_k, 0).to(tl.int32)
    top_p = as_float(tl.load(record + TOP_P))
    min_p = as_float(tl.load(record + MIN_P))
    is_asked = (temperature >= MIN_TEMPERATURE) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))
    return temperature, top_k, top_p, min_p, is_asked


@triton.jit
def _mass(x, largest, temperature):
    """Returns exp((x - largest) / temperature) in units of 2^-40."""
    weight = tl.exp((x - largest) / temperature)
    return (weight * 1099511627776.0).to(tl.int64)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _group_maxima_kernel(
    scores,
    records,
    slots,
    group_maxima,
    scores_stride,
    records_stride,
    vocab_size,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    record = records + tl.load(slots + row) * records_stride
    _, _, _, _, is_asked = _limits(
        record, vocab_size, TEMPERATURE, TOP_K, TOP_P, MIN_P, MIN_TEMPERATURE
    )
    if not is_asked:
        return
    x = load_scores(scores + row * scores_stride, tile * TILE + tl.arange(0, TILE), vocab_size)
    per_row = tl.num_programs(1) * (TILE // GROUP)
    store_group_maxima(group_maxima + row * per_row + tile * (TILE // GROUP), x, TILE, GROUP)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _floor_kernel(
    records,
    slots,
    group_maxima,
    bounds,
    counts,
    chosen,
    num_chosen,
    records_stride,
    vocab_size,
    num_groups,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
    GROUPS: tl.constexpr,
    NUM_LIKELY: tl.constexpr,
    TOO_MANY: tl.constexpr,
    UNUSED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Stores a row's largest score, the least of its candidates, and for a top-k their groups."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    record = records + tl.load(slots + row) * records_stride
    temperature, top_k, top_p, min_p, is_asked = _limits(
        record, vocab_size, TEMPERATURE, TOP_K, TOP_P, MIN_P, MIN_TEMPERATURE
    )
    if not is_asked:
        return
    groups = tl.arange(0, GROUPS)
    maxima = tl.load(
        group_maxima + row * num_groups + groups, mask=groups < num_groups, other=float("-inf")
    )
    largest = tl.max(maxima, axis=0)
    least = float("-inf")
    if min_p > 0.0:
        least = largest + temperature * tl.log(min_p)
    count = 0
    is_chosen = groups < num_groups
    if (top_k > 0) | (top_p < 1.0):
        num_wanted = tl.where(top_k > 0, top_k, NUM_LIKELY)
        if num_wanted >= num_groups:
            count = TOO_MANY
            # None: the row is searched whole.
            is_chosen = groups < 0
        else:
            floor = unordered(kth_largest(ordered(maxima, UNUSED), num_wanted), UNUSED)
            least = tl.maximum(least, floor)
    if top_k > 0:
        is_chosen &= (maxima >= least) & (maxima > float("-inf"))
        numbers = tl.cumsum(is_chosen.to(tl.int32), axis=0)
        tl.store(chosen + row * num_groups + numbers - 1, groups, mask=is_chosen)
        tl.store(num_chosen + row, tl.max(numbers, axis=0))
    tl.store(bounds + row * 2, largest)
    tl.store(bounds + row * 2 + 1, least)
    tl.store(counts + row, count)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _gather_kernel(
    scores,
    records,
    slots,
    bounds,
    counts,
    chosen,
    num_chosen,
    candidates,
    masses,
    scores_stride,
    records_stride,
    vocab_size,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Collects the candidates, in any order, and for a top-p alone also the mass of each tile.

    With a top-k, a program reads as many of the chosen groups as a tile has.
    """
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    record = records + tl.load(slots + row) * records_stride
    temperature, top_k, top_p, min_p, is_asked = _limits(
        record, vocab_size, TEMPERATURE, TOP_K, TOP_P, MIN_P, MIN_TEMPERATURE
    )
    if not is_asked:
        return
    if (top_k == 0) & (top_p >= 1.0):
        return
    NUM_GROUPS: tl.constexpr = TILE // GROUP
    groups = tile * NUM_GROUPS + tl.arange(0, NUM_GROUPS)
    num_groups = tl.num_programs(1) * NUM_GROUPS
    # Without a top-k, the mass of all that min-p leaves is wanted.
    num_read = num_groups
    if top_k > 0:
        num_read = tl.load(num_chosen + row)
    if tile * NUM_GROUPS >= num_read:
        return
    largest = tl.load(bounds + row * 2)
    least = tl.load(bounds + row * 2 + 1)
    is_read = groups < num_read
    if top_k > 0:
        groups = tl.load(chosen + row * num_groups + groups, mask=is_read, other=0)
    ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(
        scores + row * scores_stride + ids,
        mask=is_read[:, None] & (ids < vocab_size),
        other=float("-inf"),
    ).to(tl.float32)
    if top_k == 0:
        kept_from = float("-inf")
        if min_p > 0.0:
            kept_from = largest + temperature * tl.log(min_p)
        mass = tl.where(x >= kept_from, _mass(x, largest, temperature), 0)
        tl.store(masses + row * tl.num_programs(1) + tile, tl.sum(tl.sum(mass, axis=1), axis=0))
    is_candidate = tl.reshape((x >= least) & (x > float("-inf")), (TILE,)).to(tl.int32)
    number = tl.sum(is_candidate, axis=0)
    if number > 0:
        begin = tl.atomic_add(counts + row, number)
        places = begin + tl.cumsum(is_candidate, axis=0) - 1
        tl.store(
            candidates + row * CAPACITY + places,
            tl.reshape(x, (TILE,)),
            mask=(is_candidate > 0) & (places < CAPACITY),
        )


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _threshold_kernel(
    scores,
    records,
    slots,
    bounds,
    counts,
    candidates,
    masses,
    thresholds,
    scores_stride,
    records_stride,
    vocab_size,
    num_tiles,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILES: tl.constexpr,
    TOO_MANY: tl.constexpr,
    UNUSED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Finds the threshold among the candidates, and notes if they do not suffice."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    record = records + tl.load(slots + row) * records_stride
    temperature, top_k, top_p, min_p, is_asked = _limits(
        record, vocab_size, TEMPERATURE, TOP_K, TOP_P, MIN_P, MIN_TEMPERATURE
    )
    tl.store(thresholds + row, float("-inf"))
    if not is_asked:
        return
    largest = tl.load(bounds + row * 2)
    # Otherwise the row is not a distribution.
    if (largest > float("-inf")) & (largest < float("inf")):
        kept_from = float("-inf")
        if min_p > 0.0:
            kept_from = largest + temperature * tl.log(min_p)
        threshold = kept_from
        if (top_k > 0) | (top_p < 1.0):
            count = tl.load(counts + row)
            places = tl.arange(0, CAPACITY)
            x = tl.load(
                candidates + row * CAPACITY + places,
                mask=(places < count) & (count <= CAPACITY),
                other=float("-inf"),
            )
            total = tl.zeros((), dtype=tl.int64)
            if (top_k == 0) & (top_p < 1.0):
                tiles = tl.arange(0, TILES)
                parts = tl.load(masses + row * num_tiles + tiles, mask=tiles < num_tiles, other=0)
                total = tl.sum(parts, axis=0)
            mass = _mass(x, largest, temperature)
            reached = tl.sum(mass, axis=0).to(tl.float64)
            is_whole = count > CAPACITY
            if top_k == 0:
                is_whole |= reached < total.to(tl.float64) * top_p.to(tl.float64)
                # The mass of the candidates ends above the threshold.
                least = tl.min(tl.where(x > float("-inf"), x, largest), axis=0)
                tl.store(bounds + row * 2 + 1, tl.where(count > CAPACITY, largest, least))
            tl.store(counts + row, tl.where(is_whole, TOO_MANY, 0))
            threshold = _search(x, mass, total, largest, kept_from, top_k, top_p, UNUSED)
        # The likeliest token is always kept, however min_p is rounded.
        tl.store(thresholds + row, tl.minimum(threshold, largest))


@triton.jit
def _search(x, mass, total, largest, kept_from, top_k, top_p, UNUSED: tl.constexpr):
    """Returns the threshold, which is at least the smallest of the candidates x."""
    keys = ordered(x, UNUSED)
    high = ordered(largest, UNUSED).to(tl.int64) + 1
    low = tl.min(tl.where(x > float("-inf"), x, largest), axis=0)
    low = ordered(tl.maximum(low, kept_from), UNUSED).to(tl.int64)
    if top_k > 0:
        top = high
        while top - low > 1:
            middle = (low + top) >> 1
            enough = tl.sum((keys >= middle).to(tl.int32), axis=0) >= top_k
            low = tl.where(enough, middle, low)
            top = tl.where(enough, top, middle)
        total = tl.sum(tl.where(keys >= low, mass, 0), axis=0)
    if top_p < 1.0:
        wanted = total.to(tl.float64) * top_p.to(tl.float64)
        while high - low > 1:
            middle = (low + high) >> 1
            reached = tl.sum(tl.where(keys >= middle, mass, 0), axis=0)
            enough = reached.to(tl.float64) >= wanted
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
    return tl.maximum(unordered(low.to(tl.int32), UNUSED), kept_from)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _whole_row_kernel(
    scores,
    records,
    slots,
    bounds,
    counts,
    thresholds,
    scores_stride,
    records_stride,
    vocab_size,
    TEMPERATURE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
    TOO_MANY: tl.constexpr,
    CHUNK: tl.constexpr,
    UNUSED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Searches a row whose candidates do not suffice, in passes over all of it."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    record = records + tl.load(slots + row) * records_stride
    temperature, top_k, top_p, min_p, is_asked = _limits(
        record, vocab_size, TEMPERATURE, TOP_K, TOP_P, MIN_P, MIN_TEMPERATURE
    )
    if is_asked & ((top_k > 0) | (top_p < 1.0)):
        largest = tl.load(bounds + row * 2)
        is_distribution = (largest > float("-inf")) & (largest < float("inf"))
        if is_distribution & (tl.load(counts + row) == TOO_MANY):
            kept_from = float("-inf")
            if min_p > 0.0:
                kept_from = largest + temperature * tl.log(min_p)
            # What is less likely by a factor of e^-28 has no mass.
            low = tl.maximum(kept_from, largest - 28.0 * temperature)
            high = largest
            if top_k > 0:
                low = kept_from
            else:
                high = tl.load(bounds + row * 2 + 1)
            low = ordered(low, UNUSED).to(tl.int64)
            high = ordered(high, UNUSED).to(tl.int64) + 1
            given_scores = scores + row * scores_stride
            if top_k > 0:
                low = _search_whole_row(
                    given_scores, vocab_size, largest, kept_from, temperature, low, high,
                    top_k.to(tl.float32), True, CHUNK, UNUSED,
                )  # fmt: skip
            if top_p < 1.0:
                of_low = tl.full((_WAYS,), 0, dtype=tl.int64) + low
                reached = _reached(
                    given_scores, vocab_size, largest, kept_from, temperature, of_low,
                    False, CHUNK, UNUSED,
                )  # fmt: skip
                low = _search_whole_row(
                    given_scores, vocab_size, largest, kept_from, temperature, low, high,
                    top_p * tl.max(reached, axis=0), False, CHUNK, UNUSED,
                )  # fmt: skip
            threshold = tl.maximum(unordered(low.to(tl.int32), UNUSED), kept_from)
            tl.store(thresholds + row, tl.minimum(threshold, largest))


@triton.jit
def _search_whole_row(
    scores,
    vocab_size,
    largest,
    kept_from,
    temperature,
    low,
    high,
    wanted,
    IS_COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    UNUSED: tl.constexpr,
):
    """Returns the largest ordered score from which on the row has what is wanted; low has it."""
    ways = tl.arange(0, _WAYS)
    while high - low > 1:
        # The first is low itself.
        keys = low + ways * (high - low) // _WAYS
        reached = _reached(
            scores, vocab_size, largest, kept_from, temperature, keys, IS_COUNT, CHUNK, UNUSED
        )
        enough = (reached >= wanted) | (ways == 0)
        next_low = tl.max(tl.where(enough, keys, low), axis=0)
        high = tl.min(tl.where(enough | (keys == next_low), high, keys), axis=0)
        low = next_low
    return low


@triton.jit
def _reached(
    scores,
    vocab_size,
    largest,
    kept_from,
    temperature,
    keys,
    IS_COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    UNUSED: tl.constexpr,
):
    """Returns [_WAYS] the count or mass of a row from each key on, always added in one order."""
    parts = tl.zeros((_WAYS, CHUNK), dtype=tl.float32)
    for start in range(0, vocab_size, CHUNK):
        x = load_scores(scores, start + tl.arange(0, CHUNK), vocab_size)
        weight = tl.full((CHUNK,), 1.0, dtype=tl.float32)
        if not IS_COUNT:
            weight = tl.exp((x - largest) / temperature)
        weight = tl.where((x >= kept_from) & (x > float("-inf")), weight, 0.0)
        is_in = ordered(x, UNUSED).to(tl.int64)[None, :] >= keys[:, None]
        parts += tl.where(is_in, weight[None, :], 0.0)
    return tl.sum(parts, axis=1)
