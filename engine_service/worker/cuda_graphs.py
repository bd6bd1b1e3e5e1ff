"""Whole steps as CUDA graphs of fixed sizes, which a step is padded to.

Padding has no tokens of a sequence: it neither reads nor writes the cache, and what it draws is
dropped. Decode steps have graphs for 1, 2, 4 and multiples of 8 rows, steps with prompts for many
numbers of tokens, up to about where the device takes longer to run a step than the host to launch
its kernels.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self

import torch

from engine_service.worker.input_batch import Bounds, DeviceRows, InputBatch, Rows
from engine_service.worker.model_runner import ModelRunner

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

logger = logging.getLogger(__name__)

_SPARE_ROWS = 8
"""Rows for padding beside those of the largest batch, to a multiple of 8."""
_ROW_CLASSES = (8, 64)
"""Rows of the graphs for steps with prompts, beside those for the largest batch. Those of the
fewest rows come twice: also for steps in which nothing decodes."""
_MIDDLE_MAX_TOKENS = 1024
"""Above it, the graphs of most rows cost hardly more than those of 64, in short contexts. Those of
the fewest rows go on: their decodes are split along the keys, which long contexts need."""
_SIZES_PER_DOUBLING = 4
_MIN_TOKENS = 16
# Above this ratio of the device's time to that of the host's launches, padding is dearer.
_WORTHWHILE_RATIO = 1.25
_NUM_TIMED_RUNS = 3


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Returns the numbers of rows of decode graphs, in rising order, up to `max_num_seqs`.

    Matrix products work in tiles of at least 8 rows, so finer steps would save nothing; later ones
    pad by at most a sixteenth.
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


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TokenSize:
    """The sizes of a graph for steps with prompts."""

    has_decodes: bool
    """Whether rows may compute a single token."""
    num_rows: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    """The graphs of a step, and where the second leaves its tokens."""

    forward: torch.cuda.CUDAGraph
    sampler: torch.cuda.CUDAGraph
    token_ids: torch.Tensor


@contextmanager
def _capture(pool: "_POOL_HANDLE | None") -> Iterator[torch.cuda.CUDAGraph]:
    """Captures what the block enqueues.

    `torch.cuda.graph` would also give all cached memory back to the driver, each time anew.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(_capture_stream()):
        graph.capture_begin(*() if pool is None else (pool,))
        try:
            yield graph
        finally:
            graph.capture_end()


@cache
def _capture_stream() -> torch.cuda.Stream:
    # One for all: the libraries keep some memory for each stream that they ever saw.
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class StepGraph:
    """A step of fixed sizes: a graph up to the logits, and one that samples.

    Between the two there is a place for what must wait for the tokens of the step before, such as
    the mask of a grammar.

    Attributes:
        num_rows: Rows, padding included.
        num_tokens: Tokens, padding included.
    """

    def __init__(
        self, bounds: Bounds, num_rows: int, runner: ModelRunner, batch: InputBatch
    ) -> None:
        """Prepares the step; `capture` makes the graphs.

        Args:
            bounds: What the kernels are launched for.
            num_rows: Rows.
            runner: What is captured.
            batch: The state that the step reads and writes.
        """
        self.num_rows = num_rows
        self.num_tokens = bounds.num_tokens
        self._bounds = bounds
        self._runner = runner
        self._batch = batch
        nothing = Rows.none().packed(num_rows, bounds.num_tokens)
        self._rows = DeviceRows(
            packed=torch.from_numpy(nothing).to(batch.device),
            num_rows=num_rows,
            sampled_rows=None,
        )
        self._captured: _Captured | None = None

    @classmethod
    def of_decodes(cls, num_rows: int, runner: ModelRunner, batch: InputBatch) -> Self:
        """Prepares a step whose rows all compute one token."""
        bounds = Bounds(
            num_tokens=num_rows,
            # The padding's tokens are one row's.
            max_query_len=num_rows,
            max_decode_seq_len=batch.max_model_len,
            has_prefills=False,
        )
        return cls(bounds, num_rows, runner, batch)

    @classmethod
    def of_tokens(cls, size: "TokenSize", runner: ModelRunner, batch: InputBatch) -> Self:
        """Prepares a step with prompts."""
        bounds = Bounds(
            num_tokens=size.num_tokens,
            max_query_len=size.num_tokens,
            max_decode_seq_len=batch.max_model_len if size.has_decodes else 0,
            has_prefills=True,
        )
        return cls(bounds, size.num_rows, runner, batch)

    def run_eagerly(self) -> None:
        """Runs the step on nothing but padding, kernel by kernel."""
        self._runner.run(self._batch.read(self._rows, self._bounds))

    def capture(self, other: "StepGraph | None") -> None:
        """Makes the graphs.

        Args:
            other: A captured graph whose memory these use too: no two run at once.
        """
        # Kernels are compiled and libraries set up outside of a capture.
        self.run_eagerly()
        pool = other._captured.forward.pool() if other and other._captured else None
        with _capture(pool) as forward:
            inputs = self._batch.read(self._rows, self._bounds)
            logits = self._runner.compute_logits(inputs)
        assert logits is not None, "every row of a graph yields a token"
        assert inputs.sampling is not None, "likewise"
        with _capture(forward.pool()) as sampler:
            token_ids = self._runner.sample(logits, inputs.sampling)
        self._captured = _Captured(forward=forward, sampler=sampler, token_ids=token_ids)

    def replay(self, rows: DeviceRows) -> torch.Tensor:
        """Runs the step on rows padded to its sizes.

        Returns:
            [num_rows] int64 token IDs, which the next replay overwrites.
        """
        assert self._captured is not None, "captured before it is replayed"
        self._rows.packed.copy_(rows.packed)
        self._captured.forward.replay()
        self._captured.sampler.replay()
        return self._captured.token_ids


class StepGraphs:
    """The graphs of all sizes, from one pool of memory."""

    def __init__(self, decodes: list[StepGraph], others: dict[TokenSize, StepGraph]) -> None:
        self._decodes = sorted(decodes, key=lambda graph: graph.num_rows)
        self._decode_sizes = [graph.num_rows for graph in self._decodes]
        # Those without decodes first, then those of few rows; of each, by number of tokens.
        self._others: dict[tuple[bool, int], list[StepGraph]] = {}
        for size in sorted(others):
            self._others.setdefault((size.has_decodes, size.num_rows), []).append(others[size])

    @classmethod
    def capture(cls, runner: ModelRunner, batch: InputBatch, max_num_batched_tokens: int) -> Self:
        """Captures all sizes; takes some hundredths of a second for each."""
        max_num_rows = min(batch.max_num_seqs, max_num_batched_tokens)
        started_at = time.perf_counter()
        free_before, _ = torch.cuda.mem_get_info(batch.device)

        def time_step(num_tokens: int) -> tuple[float, float]:
            size = TokenSize(has_decodes=True, num_rows=_ROW_CLASSES[0], num_tokens=num_tokens)
            return _time_eagerly(StepGraph.of_tokens(size, runner, batch), batch.device)

        max_num_tokens = max_worthwhile_tokens(max_num_batched_tokens, time_step)
        others = {
            size: StepGraph.of_tokens(size, runner, batch)
            for size in _sizes_with_prompts(max_num_rows, max_num_tokens)
        }
        decodes = [StepGraph.of_decodes(size, runner, batch) for size in decode_sizes(max_num_rows)]
        first: StepGraph | None = None
        # The largest first, so that the others fit into its memory.
        for graph in sorted([*others.values(), *decodes], key=lambda graph: -graph.num_tokens):
            graph.capture(first)
            first = first or graph
        torch.cuda.synchronize(batch.device)
        free, _ = torch.cuda.mem_get_info(batch.device)
        logger.info(
            "cuda_graphs_captured num_decode_graphs=%d num_other_graphs=%d max_tokens=%d bytes=%d "
            "seconds=%.1f",
            len(decodes),
            len(others),
            max_num_tokens,
            free_before - free,
            time.perf_counter() - started_at,
        )
        return cls(decodes, others)

    def fitting(self, rows: Rows) -> StepGraph | None:
        """Returns the smallest graph that a step fits into, or None."""
        if rows.is_decode and rows.num_rows <= self._decode_sizes[-1]:
            return self._decodes[bisect_left(self._decode_sizes, rows.num_rows)]
        for (has_decodes, num_rows), graphs in self._others.items():
            if rows.num_decodes and not has_decodes:
                continue
            if rows.num_rows < num_rows and rows.num_tokens <= graphs[-1].num_tokens:
                place = bisect_left(graphs, rows.num_tokens, key=lambda graph: graph.num_tokens)
                return graphs[place]
        return None


def max_num_graphs(max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """Returns how many graphs are captured at most."""
    # Each row of a step has a token.
    max_num_rows = min(max_num_seqs, max_num_batched_tokens)
    with_prompts = _sizes_with_prompts(max_num_rows, max_num_batched_tokens)
    return len(decode_sizes(max_num_rows)) + len(with_prompts)


def _sizes_with_prompts(max_num_rows: int, max_num_tokens: int) -> list[TokenSize]:
    """Returns the sizes of graphs for steps with prompts."""
    most_rows = -(-(max_num_rows + 1) // _SPARE_ROWS) * _SPARE_ROWS
    classes = [*(rows for rows in _ROW_CLASSES if rows < most_rows), most_rows]
    return [
        TokenSize(has_decodes=has_decodes, num_rows=num_rows, num_tokens=num_tokens)
        for has_decodes, num_rows in [(False, classes[0]), *((True, rows) for rows in classes)]
        for num_tokens in token_sizes(max_num_tokens)
        if num_tokens >= num_rows
        and (num_rows in (classes[0], most_rows) or num_tokens <= _MIDDLE_MAX_TOKENS)
    ]


def max_worthwhile_tokens(
    max_num_batched_tokens: int, time_step: Callable[[int], tuple[float, float]]
) -> int:
    """Returns the tokens of the largest graph for steps with prompts.

    Sizes are doubled until the device clearly takes longer to run a step than the host to launch
    it. Measured at the start, as it depends on the model, on both processors, and on what else
    they do; another start may find the next size.

    Args:
        max_num_batched_tokens: The most tokens of a step.
        time_step: Returns, for a number of tokens, the seconds of the host and of the device.
    """
    size = min(256, max_num_batched_tokens)
    while size < max_num_batched_tokens:
        launch_seconds, device_seconds = time_step(size)
        if device_seconds > _WORTHWHILE_RATIO * launch_seconds:
            return size
        size *= 2
    return max_num_batched_tokens


def _time_eagerly(graph: StepGraph, device: torch.device) -> tuple[float, float]:
    """Returns what the quickest of several runs took, on the host and in all."""
    graph.run_eagerly()
    times = []
    for _ in range(_NUM_TIMED_RUNS):
        torch.cuda.synchronize(device)
        started_at = time.perf_counter()
        graph.run_eagerly()
        launched_at = time.perf_counter()
        torch.cuda.synchronize(device)
        times.append((launched_at - started_at, time.perf_counter() - started_at))
    return min(host for host, _ in times), min(total for _, total in times)
