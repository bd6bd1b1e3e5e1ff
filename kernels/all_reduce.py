"""The sum over ranks, alone and fused with the residual addition and RMSNorm that follow.

Few rows go in one shot: every rank writes its rows into all peers' memory, and every rank adds
them. More rows go in two: row r is added by rank r % world_size, which writes the sum to the
others. Larger messages, and ranks without direct access, take NCCL. All ranks add in float32 in
the order of ranks, or take the sum from the one that did, so they hold equal bits; NCCL's sums are
also equal on all ranks, but rounded to the type before the residual is added.

One shot. There is no barrier and no flag beside the data: each element travels in a word of twice
its width, whose upper half is a tag. A word is written and read whole (an aligned access of 4 or 8
bytes is never torn), so who sees the tag of this round has the element of this round, and no
other access needs an order. The receiver reads its own memory until all words carry the tag.
A round of a row is one collective in which the row takes part; both sides count a row's rounds on
the device (`counts`), so that captured graphs and eager launches may alternate as they like, as
long as all ranks launch the same collectives in the same order, on one stream.

* Round j of a row uses buffer j % 2. A writer in round j has received round j - 1 from each peer.
  A peer sends round j - 1 only after its kernel of round j - 2 has ended (`wait_for_inputs`), and
  so has read the buffer that round j overwrites. A rank may be one round ahead, never two.
* A round writes all words of its row. So before round j, the words of its buffer carry the tag of
  round j - 2, or 0 if j is 1 or 2, and never that of j, although tags wrap around after 2^16 rounds
  (16-bit types) or 2^32 (float32).

Two shots. Parts and totals travel as they are, and a flag with the number of the round follows each
row: the writer's threads meet, then one releases the flag at system scope; the reader's acquires
it, then its threads meet. A rank sends its next part only after it has received the total, which
the owner sent after it had read the part; and the owner sends its next total only after it has
received the next part. So nothing is overwritten before it is read, a flag is never ahead of
its reader, and one buffer is enough. These rounds have counts of their own.

Waiting needs that what is waited for runs. So a launch has at most one program for each
multiprocessor (`max_programs`), which all run at once, each for several rows, and lets the next
kernel start only when they do; programs write all that they can before they wait. A peer that has
died is waited for without end: who watches the ranks ends them.

On a GPU, each launch adds the time that it took to `nanoseconds`, from when its inputs were there.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl

from kernels import reference
from kernels.checks import check_contiguous_rows, check_dtype, check_shape
from kernels.dependent_launch import dependent_launch, wait_for_inputs
from kernels.peer_memory import PeerMemory, Peers
from kernels.rms_norm import add_rms_norm


def all_reduce(x: torch.Tensor, peers: Peers) -> torch.Tensor:
    """Adds x over all ranks.

    Args:
        x: [num_tokens, hidden], rows may be strided; undefined afterwards
        peers: the ranks, which all call this at the same time with the same shapes

    Returns:
        [num_tokens, hidden], of equal bits on all ranks

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, peers)
    if x.device.type == "cpu":
        return reference.all_reduce(_gather(x, peers))
    if peers.memory is not None and x.shape[0] <= peers.memory.max_rows:
        return _all_reduce_triton(x, peers.memory)
    return _all_reduce_nccl(x, peers)


def all_reduce_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, peers: Peers
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds x over all ranks and the residual once, and normalises the sum.

    Args:
        x: [num_tokens, hidden], rows may be strided; undefined afterwards
        residual: [num_tokens, hidden], the same on all ranks, rows may be strided
        weight: [hidden], of the same type, the same on all ranks
        eps: added to the mean square
        peers: the ranks, which all call this at the same time with the same shapes

    Returns:
        the normalised sum and the sum, which is the next residual, both [num_tokens, hidden], of
        equal bits on all ranks

    Raises:
        ValueError: an unsupported shape or type
    """
    _check(x, peers)
    check_dtype("residual", residual, x.dtype)
    check_shape("residual", residual, *x.shape)
    check_contiguous_rows("residual", residual)
    check_dtype("weight", weight, x.dtype)
    check_shape("weight", weight, x.shape[1])
    check_contiguous_rows("weight", weight)
    if x.device.type == "cpu":
        return reference.all_reduce_add_rms_norm(_gather(x, peers), residual, weight, eps)
    if peers.memory is not None and x.shape[0] <= peers.memory.max_rows:
        return _all_reduce_add_rms_norm_triton(x, residual, weight, eps, peers.memory)
    return add_rms_norm(_all_reduce_nccl(x, peers), residual, weight, eps)


def _check(x: torch.Tensor, peers: Peers) -> None:
    check_dtype("x", x)
    check_shape("x", x, None, None if peers.memory is None else peers.memory.hidden)
    check_contiguous_rows("x", x)
    if peers.memory is not None:
        check_dtype("x", x, peers.memory.dtype)


def _gather(x: torch.Tensor, peers: Peers) -> list[torch.Tensor]:
    """Returns the x of all ranks, in their order."""
    # As bytes, since not every backend knows every type.
    sent = x.contiguous().view(torch.uint8)
    parts = [torch.empty_like(sent) for _ in range(peers.world_size)]
    dist.all_gather(parts, sent, peers.group)
    return [part.view(x.dtype) for part in parts]


def _all_reduce_nccl(x: torch.Tensor, peers: Peers) -> torch.Tensor:
    total = x.contiguous()
    dist.all_reduce(total, group=peers.group)
    return total


def _all_reduce_triton(x: torch.Tensor, memory: PeerMemory) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, None, 0.0, out, None, memory)
    return out


def _all_reduce_add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, memory: PeerMemory
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, eps, out, total, memory)
    return out, total


def _is_timed(x: torch.Tensor) -> bool:
    # The interpreter has no clock of a GPU.
    return x.device.type != "cpu"


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
    total: torch.Tensor | None,
    memory: PeerMemory,
    *,
    is_two_shot: bool = False,
) -> None:
    """Launches the kernel for so many rows, or that of two shots whatever their number."""
    num_rows, hidden = x.shape
    if num_rows == 0:
        return
    is_one_shot = num_rows <= memory.max_one_shot_rows and not is_two_shot
    columns = triton.next_power_of_2(hidden)
    kernel = _one_shot_kernel if is_one_shot else _two_shot_kernel
    kernel[(min(num_rows, memory.max_programs),)](
        x,
        residual,
        weight,
        out,
        total,
        memory.areas,
        memory.counts[0 if is_one_shot else 1],
        memory.nanoseconds,
        memory.rank,
        num_rows,
        memory.max_one_shot_rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        hidden,
        eps,
        WORLD_SIZE=memory.world_size,
        HAS_NORM=weight is not None,
        COLUMNS=columns,
        IS_TIMED=_is_timed(x),
        num_warps=min(max(columns // 512, 1), 16),
        **dependent_launch(x),
    )


@triton.jit
def _area(areas, area: tl.constexpr, rank, WORLD_SIZE: tl.constexpr, dtype: tl.constexpr):
    """Returns where an area of a rank begins."""
    address = tl.load(areas + area * WORLD_SIZE + rank)
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


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


@triton.jit
def _publish(flag, round_):
    """Writes a flag after everything that the program has written so far."""
    tl.debug_barrier()
    tl.atomic_xchg(flag, round_.to(tl.int32), sem="release", scope="sys")


@triton.jit
def _wait_for(flag, round_):
    """Waits for a flag, before everything that the program reads from now on."""
    while tl.atomic_add(flag, 0, sem="acquire", scope="sys") != round_.to(tl.int32):
        pass
    tl.debug_barrier()


@triton.jit
def _sum_of_parts(
    x,
    parts,
    flags,
    row,
    round_,
    rank,
    hidden,
    WORLD_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds a row's parts in the order of ranks, each when it has come; x is this rank's own."""
    columns = tl.arange(0, COLUMNS)
    is_inside = columns < hidden
    own = tl.load(x + columns, mask=is_inside, other=0.0)
    wide = tl.zeros([COLUMNS], tl.float32)
    for source in tl.static_range(WORLD_SIZE):
        place = row * WORLD_SIZE + source
        if source != rank:
            _wait_for(flags + place, round_)
        received = parts + place * hidden + columns
        part = tl.load(received, mask=is_inside & (source != rank), other=0.0)
        wide += tl.where(source == rank, own, part).to(tl.float32)
    return wide


@triton.jit
def _residual_row(residual, place, is_inside, HAS_NORM: tl.constexpr):
    """Returns what is added to the sum. It is read before the wait for peers."""
    added = 0.0
    if HAS_NORM:
        added = tl.load(residual + place, mask=is_inside, other=0.0).to(tl.float32)
    return added


@triton.jit
def _store_row(
    rounded,
    scale,
    out,
    total,
    place,
    is_inside,
    hidden,
    eps,
    dtype: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Stores the sum and, as `rms_norm.add_rms_norm` does it, its norm."""
    if HAS_NORM:
        tl.store(total + place, rounded, mask=is_inside)
        wide = rounded.to(tl.float32)
        inverse_rms = tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden + eps)
        normed = (wide * inverse_rms).to(dtype).to(tl.float32)
        rounded = (normed * scale.to(tl.float32)).to(dtype)
    tl.store(out + place, rounded, mask=is_inside)


@triton.jit
def _begin_time(nanoseconds, IS_TIMED: tl.constexpr):
    """Returns the time of the collectives before, and the clock; nobody waits for them here."""
    before = tl.zeros([], tl.int64)
    begun_at = before
    if IS_TIMED:
        before = tl.load(nanoseconds)
        begun_at = tl.extra.cuda.globaltimer()
    return before, begun_at


@triton.jit
def _end_time(nanoseconds, before, begun_at, IS_TIMED: tl.constexpr):
    """Adds the time of this one. The first program has a row of each, and speaks for all."""
    if IS_TIMED:
        time = before + tl.extra.cuda.globaltimer() - begun_at
        tl.store(nanoseconds, time, mask=tl.program_id(0) == 0)


@triton.jit(do_not_specialize=["rank", "num_rows"])
def _one_shot_kernel(
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
    max_one_shot_rows,
    x_stride,
    residual_stride,
    hidden,
    eps,
    WORLD_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_TIMED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dtype: tl.constexpr = out.dtype.element_ty
    word_type: tl.constexpr = tl.int32 if dtype.primitive_bitwidth == 16 else tl.int64
    columns = tl.arange(0, COLUMNS)
    is_inside = columns < hidden
    # No kernel writes the weight and the table of addresses, so they are read while waiting.
    scale = tl.load(weight + columns, mask=is_inside, other=0.0) if HAS_NORM else 0.0
    own_words = _area(areas, 0, rank, WORLD_SIZE, word_type)
    first, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    wait_for_inputs(IS_DEPENDENT)
    before, begun_at = _begin_time(nanoseconds, IS_TIMED)
    for row in range(first, num_rows, step):
        round_ = tl.load(counts + row) + 1
        part = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
        words = _pack(part, _tag(round_, word_type), word_type)
        place = ((round_ % 2 * max_one_shot_rows + row) * WORLD_SIZE + rank) * hidden
        for peer in tl.static_range(WORLD_SIZE):
            target = _area(areas, 0, peer, WORLD_SIZE, word_type) + place
            tl.store(target + columns, words, mask=is_inside & (peer != rank))
    # No thread may wait before it has sent.
    tl.debug_barrier()
    for row in range(first, num_rows, step):
        round_ = tl.load(counts + row) + 1
        tag = _tag(round_, word_type)
        added_place = row * residual_stride + columns
        added = _residual_row(residual, added_place, is_inside, HAS_NORM)
        own = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
        wide = tl.zeros([COLUMNS], tl.float32)
        for source in tl.static_range(WORLD_SIZE):
            place = ((round_ % 2 * max_one_shot_rows + row) * WORLD_SIZE + source) * hidden
            is_sent = is_inside & (source != rank)
            part = _receive(own_words + place + columns, is_sent, tag, word_type, dtype)
            wide += tl.where(source == rank, own, part).to(tl.float32)
        rounded = (wide + added).to(dtype)
        here = row * hidden + columns
        _store_row(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, HAS_NORM)
        tl.store(counts + row, round_)
    _end_time(nanoseconds, before, begun_at, IS_TIMED)


@triton.jit(do_not_specialize=["rank", "num_rows"])
def _two_shot_kernel(
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
    max_one_shot_rows,
    x_stride,
    residual_stride,
    hidden,
    eps,
    WORLD_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    IS_TIMED: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    dtype: tl.constexpr = out.dtype.element_ty
    columns = tl.arange(0, COLUMNS)
    is_inside = columns < hidden
    scale = tl.load(weight + columns, mask=is_inside, other=0.0) if HAS_NORM else 0.0
    own_parts = _area(areas, 1, rank, WORLD_SIZE, dtype)
    own_totals = _area(areas, 2, rank, WORLD_SIZE, dtype)
    own_part_flags = _area(areas, 3, rank, WORLD_SIZE, tl.int32)
    own_total_flags = _area(areas, 4, rank, WORLD_SIZE, tl.int32)
    first, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    wait_for_inputs(IS_DEPENDENT)
    before, begun_at = _begin_time(nanoseconds, IS_TIMED)
    # The rows of others: their owners get this rank's part.
    for row in range(first, num_rows, step):
        owner = row % WORLD_SIZE
        if owner != rank:
            place = row * WORLD_SIZE + rank
            part = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0)
            target = _area(areas, 1, owner, WORLD_SIZE, dtype) + place * hidden
            tl.store(target + columns, part, mask=is_inside)
            flag = _area(areas, 3, owner, WORLD_SIZE, tl.int32) + place
            _publish(flag, tl.load(counts + row) + 1)
    # This rank's rows: their totals go to all others.
    for row in range(first, num_rows, step):
        if row % WORLD_SIZE == rank:
            round_ = tl.load(counts + row) + 1
            added_place = row * residual_stride + columns
            added = _residual_row(residual, added_place, is_inside, HAS_NORM)
            wide = _sum_of_parts(
                x + row * x_stride,
                own_parts,
                own_part_flags,
                row,
                round_,
                rank,
                hidden,
                WORLD_SIZE,
                COLUMNS,
            )
            rounded = (wide + added).to(dtype)
            here = row * hidden + columns
            for peer in tl.static_range(WORLD_SIZE):
                totals = _area(areas, 2, peer, WORLD_SIZE, dtype)
                tl.store(totals + here, rounded, mask=is_inside & (peer != rank))
            for peer in tl.static_range(WORLD_SIZE):
                if peer != rank:
                    _publish(_area(areas, 4, peer, WORLD_SIZE, tl.int32) + row, round_)
            _store_row(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, HAS_NORM)
            tl.store(counts + row, round_)
    # The rows of others again: their owners send the totals.
    for row in range(first, num_rows, step):
        if row % WORLD_SIZE != rank:
            round_ = tl.load(counts + row) + 1
            _wait_for(own_total_flags + row, round_)
            here = row * hidden + columns
            rounded = tl.load(own_totals + here, mask=is_inside, other=0.0)
            _store_row(rounded, scale, out, total, here, is_inside, hidden, eps, dtype, HAS_NORM)
            tl.store(counts + row, round_)
    _end_time(nanoseconds, before, begun_at, IS_TIMED)
