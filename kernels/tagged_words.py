"""The all-reduce of few rows: each element travels with a tag, and nothing else is waited for.

Every rank writes its rows into all peers' memory, and every rank adds them. There is no barrier and
no flag beside the data: each element travels in a word of twice its width, whose upper half is a
tag. A word is written and read whole (an aligned access of 4 or 8 bytes is never torn), so who sees
the tag of this round has the element of this round, and no other access needs an order. The
receiver reads its own memory until all words carry the tag.

A round of a row is one collective of this way in which the row takes part; both sides count a row's
rounds on the device (`counts`).

* Round j of a row uses buffer j % 2. A writer in round j has received round j - 1 from each peer.
  A peer sends round j - 1 only after its kernel of round j - 2 has ended (`wait_for_inputs`), and
  so has read the buffer that round j overwrites. A rank may be one round ahead, never two.
* A round writes all words of its row. So before round j, the words of its buffer carry the tag of
  round j - 2, or 0 if j is 1 or 2, and never that of j, although tags wrap around after 2^16 rounds
  (16-bit types) or 2^32 (float32).
"""

import triton
import triton.language as tl

from kernels.dependent_launch import wait_for_inputs
from kernels.reduced_rows import area, begin_time, end_time, residual_rows, store_rows


@triton.jit
def _tag(round_, word_type: tl.constexpr):
    """Returns a word of zeros with the tag of a round."""
    return round_.to(word_type) << (word_type.primitive_bitwidth // 2)


@triton.jit
def _pack(values, tag, word_type: tl.constexpr):
    """Returns words of the values and the tag."""
    bits_type: tl.constexpr = tl.uint16 if word_type.primitive_bitwidth == 32 else tl.uint32
    return values.to(bits_type, bitcast=True).to(word_type) | tag


@triton.jit
def _receive(words, is_inside, tag, word_type: tl.constexpr, dtype: tl.constexpr):
    """Reads words until all inside have the tag, and returns their values; outside 0."""
    half: tl.constexpr = word_type.primitive_bitwidth // 2
    bits_type: tl.constexpr = tl.uint16 if half == 16 else tl.uint32
    word = tl.load(words, mask=is_inside, other=tag, volatile=True)
    while tl.max((((word ^ tag) >> half) != 0).to(tl.int32), axis=0) > 0:
        word = tl.load(words, mask=is_inside, other=tag, volatile=True)
    return word.to(bits_type).to(dtype, bitcast=True)


@triton.jit(do_not_specialize=["rank", "num_rows"])
def tagged_words_kernel(
    x,
    residual,
    weight,
    out,
    total,
    areas,
    counts,
    nanoseconds,
    rank,
    num_rows,
    max_rows,
    x_stride,
    residual_stride,
    hidden,
    eps,
    WORLD_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_TIMED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
) -> None:
    """Adds the rows of all ranks; the arguments are those of `all_reduce._launch`."""
    dtype: tl.constexpr = out.dtype.element_ty
    word_type: tl.constexpr = tl.int32 if dtype.primitive_bitwidth == 16 else tl.int64
    columns = tl.arange(0, COLUMNS)
    is_inside = columns < hidden
    # No kernel writes the weight and the table of addresses, so they are read while waiting.
    scale = tl.load(weight + columns, mask=is_inside, other=0.0) if HAS_NORM else 0.0
    own_words = area(areas, 0, rank, WORLD_SIZE, word_type)
    first, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    wait_for_inputs(IS_DEPENDENT)
    before, begun_at = begin_time(nanoseconds, IS_TIMED)
    for row in range(first, num_rows, step):
        round_ = tl.load(counts + row) + 1
        part = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
        words = _pack(part, _tag(round_, word_type), word_type)
        place = ((round_ % 2 * max_rows + row) * WORLD_SIZE + rank) * hidden
        for peer in tl.static_range(WORLD_SIZE):
            target = area(areas, 0, peer, WORLD_SIZE, word_type) + place
            tl.store(target + columns, words, mask=is_inside & (peer != rank))
    # No thread may wait before it has sent.
    tl.debug_barrier()
    for row in range(first, num_rows, step):
        round_ = tl.load(counts + row) + 1
        tag = _tag(round_, word_type)
        added_place = row * residual_stride + columns
        added = residual_rows(residual, added_place, is_inside, HAS_NORM)
        own = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
        wide = tl.zeros([COLUMNS], tl.float32)
        for source in tl.static_range(WORLD_SIZE):
            place = ((round_ % 2 * max_rows + row) * WORLD_SIZE + source) * hidden
            is_sent = is_inside & (source != rank)
            part = _receive(own_words + place + columns, is_sent, tag, word_type, dtype)
            wide += tl.where(source == rank, own, part).to(tl.float32)
        rounded = (wide + added).to(dtype)
        here = row * hidden + columns
        store_rows(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, HAS_NORM)
        tl.store(counts + row, round_)
    end_time(nanoseconds, before, begun_at, IS_TIMED)
