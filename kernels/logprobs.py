"""The log probabilities of the tokens drawn, and of each row's likeliest tokens."""

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

MAX_TOP = 128
"""Most tokens of a row that are listed."""


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes the log probability of a token of each row, and the row's likeliest tokens.

    Args:
        logits: [num_rows, vocab_size], rows may be strided
        token_ids: [num_rows] int64; of -1, no token, the result is undefined
        num_top: how many of the likeliest, at most vocab_size and `MAX_TOP`

    Returns:
        [num_rows] float32; [num_rows, num_top] int32, the likeliest first, of equal ones the
        smaller token; and theirs, [num_rows, num_top] float32

    Raises:
        ValueError: an unsupported shape, type or number
    """
    check_dtype("logits", logits)
    check_shape("logits", logits, None, None)
    check_contiguous_rows("logits", logits)
    check_dtype("token_ids", token_ids, torch.int64)
    check_shape("token_ids", token_ids, logits.shape[0])
    if not 0 <= num_top <= min(MAX_TOP, logits.shape[1]):
        raise ValueError(f"num_top is {num_top}; expected 0 to {min(MAX_TOP, logits.shape[1])}")
    if logits.device.type == "cpu":
        return sampling_reference.token_logprobs(logits, token_ids, num_top)
    return _token_logprobs_triton(logits, token_ids, num_top)


def _token_logprobs_triton(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows, vocab_size = logits.shape
    num_tiles = triton.cdiv(vocab_size, TILE)
    num_groups = num_tiles * (TILE // GROUP)

    def empty(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty((num_rows, *sizes), dtype=dtype, device=logits.device)

    logprobs, top_logprobs = empty(), empty(num_top)
    top_ids = empty(num_top, dtype=torch.int32)
    if num_rows == 0:
        return logprobs, top_ids, top_logprobs
    group_maxima, sums = empty(num_groups), empty(num_tiles)
    normalizers, floors = empty(), empty()
    counts = empty(dtype=torch.int32)
    candidates = empty(CAPACITY, dtype=torch.int64)
    per_tile = {"TILE": TILE, "GROUP": GROUP, "num_warps": 8, **dependent_launch(logits)}
    _sums_kernel[(num_rows, num_tiles)](
        logits, group_maxima, sums, logits.stride(0), vocab_size, **per_tile
    )
    _normalizer_kernel[(num_rows,)](
        logits,
        token_ids,
        group_maxima,
        sums,
        normalizers,
        logprobs,
        floors,
        counts,
        logits.stride(0),
        num_tiles,
        num_groups,
        num_top,
        TILES=triton.next_power_of_2(num_tiles),
        GROUPS=triton.next_power_of_2(num_groups),
        PER_TILE=TILE // GROUP,
        TOO_MANY=TOO_MANY,
        UNUSED=unused_bits(logits.dtype),
        num_warps=8,
        **dependent_launch(logits),
    )
    if num_top:
        _gather_kernel[(num_rows, num_tiles)](
            logits,
            group_maxima,
            floors,
            counts,
            candidates,
            logits.stride(0),
            vocab_size,
            CAPACITY=CAPACITY,
            **per_tile,
        )
        _top_kernel[(num_rows,)](
            logits,
            normalizers,
            counts,
            candidates,
            top_ids,
            top_logprobs,
            logits.stride(0),
            vocab_size,
            num_top,
            CAPACITY=CAPACITY,
            CHUNK=TILE,
            num_warps=8,
            **dependent_launch(logits),
        )
    return logprobs, top_ids, top_logprobs


@triton.jit
def _sums_kernel(
    logits,
    group_maxima,
    sums,
    logits_stride,
    vocab_size,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Stores the maximum of each group, and the sum of exponentials of each tile."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    x = load_scores(logits + row * logits_stride, tile * TILE + tl.arange(0, TILE), vocab_size)
    per_row = tl.num_programs(1) * (TILE // GROUP)
    store_group_maxima(group_maxima + row * per_row + tile * (TILE // GROUP), x, TILE, GROUP)
    largest = tl.maximum(tl.max(x, axis=0), -3.0e38)
    tl.store(sums + row * tl.num_programs(1) + tile, tl.sum(tl.exp(x - largest), axis=0))


@triton.jit(do_not_specialize=["num_top"])
def _normalizer_kernel(
    logits,
    token_ids,
    group_maxima,
    sums,
    normalizers,
    logprobs,
    floors,
    counts,
    logits_stride,
    num_tiles,
    num_groups,
    num_top,
    TILES: tl.constexpr,
    GROUPS: tl.constexpr,
    PER_TILE: tl.constexpr,
    TOO_MANY: tl.constexpr,
    UNUSED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Stores each row's log of the sum, its token's logprob, and the least candidate."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.arange(0, TILES)
    places = tiles[:, None] * PER_TILE + tl.arange(0, PER_TILE)[None, :]
    by_tile = tl.load(
        group_maxima + row * num_groups + places,
        mask=tiles[:, None] < num_tiles,
        other=float("-inf"),
    )
    largest = tl.maximum(tl.max(by_tile, axis=1), -3.0e38)
    parts = tl.load(sums + row * num_tiles + tiles, mask=tiles < num_tiles, other=0.0)
    of_row = tl.max(largest, axis=0)
    normalizer = of_row + tl.log(tl.sum(parts * tl.exp(largest - of_row), axis=0))
    token = tl.maximum(tl.load(token_ids + row), 0)
    chosen = tl.load(logits + row * logits_stride + token).to(tl.float32)
    tl.store(logprobs + row, chosen - normalizer)
    tl.store(normalizers + row, normalizer)
    count = 0
    floor = float("inf")
    if num_top >= num_groups:
        count = TOO_MANY
    elif num_top > 0:
        groups = tl.arange(0, GROUPS)
        maxima = tl.load(
            group_maxima + row * num_groups + groups, mask=groups < num_groups, other=float("-inf")
        )
        floor = unordered(kth_largest(ordered(maxima, UNUSED), num_top), UNUSED)
    tl.store(floors + row, floor)
    tl.store(counts + row, count)


@triton.jit
def _key(x, ids):
    """Returns int64 keys in the order of the list: larger scores first, then smaller tokens."""
    return (ordered(x, 0).to(tl.int64) << 32) | (0x7FFFFFFF - ids)


@triton.jit
def _gather_kernel(
    logits,
    group_maxima,
    floors,
    counts,
    candidates,
    logits_stride,
    vocab_size,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Collects the keys of the candidates, in any order."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    NUM_GROUPS: tl.constexpr = TILE // GROUP
    per_row = tl.num_programs(1) * NUM_GROUPS
    groups = tl.arange(0, NUM_GROUPS)
    floor = tl.load(floors + row)
    maxima = tl.load(group_maxima + row * per_row + tile * NUM_GROUPS + groups)
    ids = tile * TILE + tl.reshape(tl.arange(0, TILE), (NUM_GROUPS, GROUP))
    is_entry = ids < vocab_size
    x = tl.load(
        logits + row * logits_stride + ids,
        mask=(maxima >= floor)[:, None] & is_entry,
        other=float("-inf"),
    ).to(tl.float32)
    is_candidate = tl.reshape((x >= floor) & is_entry, (TILE,)).to(tl.int32)
    number = tl.sum(is_candidate, axis=0)
    if number > 0:
        begin = tl.atomic_add(counts + row, number)
        places = begin + tl.cumsum(is_candidate, axis=0) - 1
        tl.store(
            candidates + row * CAPACITY + places,
            tl.reshape(_key(x, ids), (TILE,)),
            mask=(is_candidate > 0) & (places < CAPACITY),
        )


@triton.jit(do_not_specialize=["num_top"])
def _top_kernel(
    logits,
    normalizers,
    counts,
    candidates,
    top_ids,
    top_logprobs,
    logits_stride,
    vocab_size,
    num_top,
    CAPACITY: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Lists the likeliest tokens, one after the other."""
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    normalizer = tl.load(normalizers + row)
    count = tl.load(counts + row)
    places = tl.arange(0, CAPACITY)
    LEAST: tl.constexpr = -(1 << 63)
    keys = tl.load(
        candidates + row * CAPACITY + places,
        mask=(places < count) & (count <= CAPACITY),
        other=LEAST,
    )
    best = tl.full((), 0x7FFFFFFFFFFFFFFF, dtype=tl.int64)
    for place in range(num_top):
        if count <= CAPACITY:
            best = tl.max(tl.where(keys < best, keys, LEAST), axis=0)
        else:
            best = _next_key(logits + row * logits_stride, vocab_size, best, CHUNK)
        token = 0x7FFFFFFF - (best & 0xFFFFFFFF)
        x = unordered((best >> 32).to(tl.int32), 0)
        tl.store(top_ids + row * num_top + place, token.to(tl.int32))
        tl.store(top_logprobs + row * num_top + place, x - normalizer)


@triton.jit
def _next_key(logits, vocab_size, last, CHUNK: tl.constexpr):
    """Returns the largest key of a whole row below the last one."""
    best = tl.full((), -(1 << 63), dtype=tl.int64)
    for start in range(0, vocab_size, CHUNK):
        ids = start + tl.arange(0, CHUNK)
        keys = _key(load_scores(logits, ids, vocab_size), ids)
        is_next = (keys < last) & (ids < vocab_size)
        best = tl.maximum(best, tl.max(tl.where(is_next, keys, -(1 << 63)), axis=0))
    return best
