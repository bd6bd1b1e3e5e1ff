"""The sizes of CUDA graphs: of decode steps by rows, of steps with prompts by tokens and rows.

Which sizes are worth having depends on how long steps of them take (`cuda_graphs.py` measures it).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

_SPARE_ROWS = 8
"""Rows for padding beyond those of the largest batch, up to a multiple of 8."""
ROW_CLASSES = (8, 64)
"""Rows of the graphs for steps with prompts, besides those for the largest batch. The graphs with
the fewest rows exist twice: also for steps in which nothing decodes."""
_MIDDLE_MAX_TOKENS = 1024
"""Above it, graphs with the most rows cost hardly more than those with 64, in short contexts. Those
with the fewest rows go on: so measured when only few decodes were split along the keys."""
MIN_SHARING_ROWS = 16
"""Rows from which on there are graphs that read shared prefixes once, too."""
_SIZES_PER_DOUBLING = 4
_MIN_TOKENS = 16
# Above this ratio of device time to launch time on the host, padding costs more than it saves.
_WORTHWHILE_RATIO = 1.25
_MAX_TIMED_TOKENS = 1024
"""Of graphs for steps with prompts. With more, products have so many tiles that none is slow."""
_MIN_GAIN, _MIN_GAIN_SECONDS = 1.01, 10e-6
"""By both of which a larger graph must be faster to take a smaller one's place."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TokenSize:
    """The sizes of a graph for steps with prompts."""

    has_decodes: bool
    """Whether rows may compute a single token."""
    num_rows: int
    num_tokens: int
    shares_prefixes: bool = False
    """Whether rows of a single token read prefixes that several share once."""


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Returns the numbers of rows of decode graphs, in rising order, up to `max_num_seqs`.

    Matrix products work in tiles of at least 8 rows, so finer steps would save nothing. Larger
    sizes pad by at most a sixteenth.
    """
    sizes = [1, 2, 4]
    while sizes[-1] < max_num_seqs:
        step = max(8, sizes[-1] // 16 // 8 * 8)
        sizes.append(sizes[-1] // 8 * 8 + step)
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def token_sizes(max_num_tokens: int) -> list[int]:
    """Returns the numbers of tokens of graphs for steps with prompts, in rising order."""
    sizes = []
    size = _MIN_TOKENS
    while size < max_num_tokens:
        sizes.append(size)
        # 16, 32, 48, 64, 80, 96, 112, 128, 160, ...: a quarter of the power of two below.
        step = (1 << (size.bit_length() - 1)) // _SIZES_PER_DOUBLING
        size += max(_MIN_TOKENS, step)
    return [*sizes, max_num_tokens]


def decode_classes(max_num_rows: int, may_share: bool) -> dict[bool, list[int]]:
    """Returns the sizes of decode graphs: those that read each prefix for each row, and others."""
    sizes = decode_sizes(max_num_rows)
    return {False: sizes, True: [size for size in sizes if may_share and size >= MIN_SHARING_ROWS]}


def sizes_with_prompts(
    max_num_rows: int, max_num_tokens: int, *, may_share: bool = True
) -> list[TokenSize]:
    """Returns the sizes of graphs for steps with prompts.

    If prefixes may be shared, each size with the most rows is there twice: the second one reads
    them once.
    """
    most_rows = -(-(max_num_rows + 1) // _SPARE_ROWS) * _SPARE_ROWS
    classes = [*(rows for rows in ROW_CLASSES if rows < most_rows), most_rows]
    sizes = [
        TokenSize(has_decodes=has_decodes, num_rows=num_rows, num_tokens=num_tokens)
        for has_decodes, num_rows in [(False, classes[0]), *((True, rows) for rows in classes)]
        for num_tokens in token_sizes(max_num_tokens)
        if num_tokens >= num_rows
        and (num_rows in (classes[0], most_rows) or num_tokens <= _MIDDLE_MAX_TOKENS)
    ]
    if not may_share or max_num_rows < MIN_SHARING_ROWS:
        return sizes
    most = [size for size in sizes if size.has_decodes and size.num_rows == most_rows]
    return sizes + [replace(size, shares_prefixes=True) for size in most]


def max_num_graphs(
    max_num_seqs: int, max_num_batched_tokens: int, *, may_share: bool = True
) -> int:
    """Returns the largest number of graphs that may be captured, as of `StepGraphs.capture`."""
    # Each row of a step has a token.
    max_num_rows = min(max_num_seqs, max_num_batched_tokens)
    with_prompts = sizes_with_prompts(max_num_rows, max_num_batched_tokens, may_share=may_share)
    classes = decode_classes(max_num_rows, may_share)
    # And one of a short sequence.
    return sum(map(len, classes.values())) + len(with_prompts) + 1


def max_worthwhile_tokens(
    max_num_batched_tokens: int, time_step: Callable[[int], tuple[float, float]]
) -> int:
    """Returns the tokens of the largest graph for steps with prompts.

    Doubles the size until running a step on the device clearly takes longer than launching it on
    the host. This is measured at each start, as it depends on the model, on both processors, and on
    their other load. Another start may stop one size earlier or later.

    Args:
        max_num_batched_tokens: The most tokens of a step.
        time_step: Returns the seconds of host and device for a number of tokens.
    """
    size = min(256, max_num_batched_tokens)
    while size < max_num_batched_tokens:
        launch_seconds, device_seconds = time_step(size)
        if device_seconds > _WORTHWHILE_RATIO * launch_seconds:
            return size
        size *= 2
    return max_num_batched_tokens


def timed_sizes(sizes: Iterable[TokenSize]) -> list[TokenSize]:
    """Returns one of the sizes with prompts for each number of tokens that is timed, in order.

    Those with the fewest rows: they have all numbers of tokens. What is slow are the products of
    all tokens, whatever the number of rows.
    """
    sizes = [
        size
        for size in sizes
        if size.num_tokens <= _MAX_TIMED_TOKENS and size.has_decodes and not size.shares_prefixes
    ]
    fewest_rows = min((size.num_rows for size in sizes), default=0)
    return sorted(size for size in sizes if size.num_rows == fewest_rows)


def worthwhile_sizes(sizes: Sequence[int], seconds: Sequence[float]) -> list[int]:
    """Returns the sizes without those that take longer than a larger one.

    Some are slow: cuBLAS took 217 us for the products of a layer of half of Qwen3-32B with 192
    rows, 180 with 200, and 374 with 320, 282 with 384.

    Args:
        sizes: numbers of tokens, in rising order
        seconds: what a step of each takes, at the same places
    """
    kept: list[int] = []
    fastest = math.inf
    for size, time_of_size in zip(reversed(sizes), reversed(seconds), strict=True):
        if time_of_size <= max(_MIN_GAIN * fastest, fastest + _MIN_GAIN_SECONDS):
            kept.insert(0, size)
            fastest = min(fastest, time_of_size)
    return kept
