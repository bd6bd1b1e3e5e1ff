"""Whole steps as CUDA graphs of fixed sizes; a step is padded to the next size.

Padding has no tokens of a sequence: it neither reads nor writes the cache, and its draws are
dropped. Sizes (`graph_sizes.py`) are timed at the start: there are none far above where running a
step on the device takes longer than launching its kernels on the host, and those that take longer
than a larger one are left out.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
import torch.distributed as dist

from engine_service.layers.ranks import ALONE, Ranks
from engine_service.worker.graph_sizes import (
    MIN_SHARING_ROWS,
    ROW_CLASSES,
    TokenSize,
    decode_classes,
    max_worthwhile_tokens,
    sizes_with_prompts,
    timed_sizes,
    worthwhile_sizes,
)
from engine_service.worker.input_batch import Bounds, InputBatch, SamplingInputs
from engine_service.worker.model_runner import ModelRunner
from engine_service.worker.prefix_tiles import num_packed
from engine_service.worker.rows import DeviceRows, Rows
from engine_service.worker.sampler import Sampled
from engine_service.worker.slot_sampling import NOTHING, Wants
from kernels.partial_attention import MAX_TOKENS

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

logger = logging.getLogger(__name__)

_NUM_TIMED_RUNS = 3
_MAX_SHARING_PADDING = 1.25
"""How many times as many tokens a graph may have to read shared prefixes once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    """The graph up to the logits, its output, and the graphs of samplers that read it."""

    forward: torch.cuda.CUDAGraph
    logits: torch.Tensor
    sampling: SamplingInputs
    samplers: dict[Wants, tuple[torch.cuda.CUDAGraph, Sampled]]


@contextmanager
def _capture(pool: "_POOL_HANDLE | None") -> Iterator[torch.cuda.CUDAGraph]:
    """Captures the work that the block enqueues.

    `torch.cuda.graph` would also return all cached memory to the driver, every time.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(_capture_stream()):
        # NCCL's own thread calls the driver meanwhile, which does not concern the capture.
        mode = "thread_local" if dist.is_initialized() else "global"
        if pool is None:
            graph.capture_begin(capture_error_mode=mode)
        else:
            graph.capture_begin(pool, mode)
        try:
            yield graph
        finally:
            graph.capture_end()


@cache
def _capture_stream() -> torch.cuda.Stream:
    # One for all captures: the libraries keep memory for each stream that they have seen.
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class StepGraph:
    """A step of fixed sizes: one graph up to the logits, and one for each way of sampling.

    Work that must wait for the previous step's tokens, such as the mask of a grammar, fits between
    the two. The plain sampler is captured at the start; another, of a few kernels, when a request
    first asks for it.

    Attributes:
        num_rows: Rows, including padding.
        num_tokens: Tokens, including padding.
        shares_prefixes: Whether it reads prefixes that several rows share once.
    """

    def __init__(
        self,
        bounds: Bounds,
        num_rows: int,
        runner: ModelRunner,
        batch: InputBatch,
        *,
        shares_prefixes: bool = False,
    ) -> None:
        """Prepares the step; `capture` makes the graphs.

        Args:
            bounds: The bounds for which the kernels are launched.
            num_rows: Rows.
            runner: The model runner to capture.
            batch: The state that the step reads and writes.
            shares_prefixes: Whether it reads prefixes that several rows share once.
        """
        self.num_rows = num_rows
        self.shares_prefixes = shares_prefixes
        self.num_tokens = bounds.num_tokens
        self._bounds = bounds
        self._runner = runner
        self._batch = batch
        nothing = Rows.none().packed(num_rows, bounds.num_tokens)
        if shares_prefixes:
            nothing = np.pad(nothing, (0, num_packed(num_rows)))
        self._rows = DeviceRows(
            packed=torch.from_numpy(nothing).to(batch.device),
            num_rows=num_rows,
            sampled_rows=None,
        )
        self._captured: _Captured | None = None

    @classmethod
    def of_decodes(
        cls,
        num_rows: int,
        runner: ModelRunner,
        batch: InputBatch,
        *,
        max_seq_len: int | None = None,
        shares_prefixes: bool = False,
    ) -> Self:
        """Prepares a step whose rows all compute one token, of sequences up to `max_seq_len`."""
        bounds = Bounds(
            num_tokens=num_rows,
            # All padding tokens belong to one row.
            max_query_len=num_rows,
            max_decode_seq_len=max_seq_len or batch.max_model_len,
            has_prefills=False,
        )
        return cls(bounds, num_rows, runner, batch, shares_prefixes=shares_prefixes)

    @classmethod
    def of_tokens(cls, size: "TokenSize", runner: ModelRunner, batch: InputBatch) -> Self:
        """Prepares a step with prompts."""
        bounds = Bounds(
            num_tokens=size.num_tokens,
            max_query_len=size.num_tokens,
            max_decode_seq_len=batch.max_model_len if size.has_decodes else 0,
            has_prefills=True,
        )
        return cls(bounds, size.num_rows, runner, batch, shares_prefixes=size.shares_prefixes)

    def run_eagerly(self) -> None:
        """Runs the step on padding only, kernel by kernel."""
        self._run_eagerly(self._runner)

    def capture(self, other: "StepGraph | None") -> None:
        """Captures the graphs.

        Args:
            other: A captured graph whose memory is shared: no two graphs run at once.
        """
        # Kernels are compiled and libraries initialised outside the capture.
        self._run_eagerly(self._runner.shortened())
        pool = other._captured.forward.pool() if other and other._captured else None
        with _capture(pool) as forward:
            inputs = self._batch.read(self._rows, self._bounds)
            logits = self._runner.compute_logits(inputs)
        assert logits is not None, "every row of a graph yields a token"
        assert inputs.sampling is not None, "every row of a graph yields a token"
        self._captured = _Captured(
            forward=forward, logits=logits, sampling=inputs.sampling, samplers={}
        )
        self._capture_sampler(self._captured, NOTHING)

    def replay(
        self, rows: DeviceRows, wants: Wants, before_draw: Callable[[], object] | None = None
    ) -> Sampled:
        """Runs the step on rows padded to its sizes.

        Args:
            rows: The rows.
            wants: What they ask of the sampler.
            before_draw: Called when the logits are enqueued.

        Returns:
            What the sampler gives for all rows, which the next replay overwrites.
        """
        captured = self._captured
        assert captured is not None, "captured before it is replayed"
        if wants not in captured.samplers:
            self._capture_sampler(captured, wants)
        self._rows.packed.copy_(rows.packed)
        captured.forward.replay()
        if before_draw is not None:
            before_draw()
        sampler, sampled = captured.samplers[wants]
        sampler.replay()
        return sampled

    def time_replay(self) -> float:
        """Returns the seconds that a replay takes up to the logits, on padding: without attention.

        All ranks call it at the same time.
        """
        assert self._captured is not None, "captured before it is timed"
        _, seconds = _fastest_times(self._captured.forward.replay, self._batch.device)
        return seconds

    def _run_eagerly(self, runner: ModelRunner) -> None:
        runner.run(self._batch.read(self._rows, self._bounds), NOTHING)

    def _capture_sampler(self, captured: _Captured, wants: Wants) -> None:
        with _capture(captured.forward.pool()) as sampler:
            sampled = self._runner.sample(captured.logits, captured.sampling, wants)
        captured.samplers[wants] = (sampler, sampled)


class StepGraphs:
    """The graphs of all sizes, in one memory pool."""

    def __init__(
        self,
        decodes: list[StepGraph],
        others: dict[TokenSize, StepGraph],
        short: StepGraph | None = None,
    ) -> None:
        """Sorts graphs by size.

        Args:
            decodes: Those whose rows compute one token each.
            others: Those with prompts.
            short: One of a row that computes one token of a sequence of up to `MAX_TOKENS`.
        """
        self._short = short
        self._decodes: dict[bool, list[StepGraph]] = {False: [], True: []}
        for graph in sorted(decodes, key=lambda graph: graph.num_rows):
            self._decodes[graph.shares_prefixes].append(graph)
        # Graphs without decodes first, then by number of rows; within these, by number of tokens.
        self._others: dict[tuple[bool, int], list[StepGraph]] = {}
        self._sharing_others: list[StepGraph] = []
        for size in sorted(others):
            if size.shares_prefixes:
                self._sharing_others.append(others[size])
            else:
                self._others.setdefault((size.has_decodes, size.num_rows), []).append(others[size])

    @classmethod
    def capture(
        cls,
        runner: ModelRunner,
        batch: InputBatch,
        max_num_batched_tokens: int,
        ranks: Ranks = ALONE,
        *,
        may_share: bool = True,
    ) -> Self:
        """Captures all sizes; each takes some hundredths of a second. All ranks keep the same.

        Args:
            runner: The model runner to capture.
            batch: The state that the steps read and write.
            max_num_batched_tokens: The most tokens of a step.
            ranks: All ranks.
            may_share: Whether steps may come with prefixes that several rows share.
        """
        max_num_rows = min(batch.max_num_seqs, max_num_batched_tokens)
        started_at = time.perf_counter()
        free_before, _ = torch.cuda.mem_get_info(batch.device)

        def time_step(num_tokens: int) -> tuple[float, float]:
            size = TokenSize(has_decodes=True, num_rows=ROW_CLASSES[0], num_tokens=num_tokens)
            step = StepGraph.of_tokens(size, runner, batch)
            launch, device = ranks.from_first(_fastest_times(step.run_eagerly, batch.device))
            return launch, device

        max_num_tokens = max_worthwhile_tokens(max_num_batched_tokens, time_step)
        others = {
            size: StepGraph.of_tokens(size, runner, batch)
            for size in sizes_with_prompts(max_num_rows, max_num_tokens, may_share=may_share)
        }
        decodes = [
            StepGraph.of_decodes(size, runner, batch, shares_prefixes=shares_prefixes)
            for shares_prefixes, sizes in decode_classes(max_num_rows, may_share).items()
            for size in sizes
        ]
        short = None
        if batch.max_model_len > MAX_TOKENS:
            short = StepGraph.of_decodes(1, runner, batch, max_seq_len=MAX_TOKENS)
        first: StepGraph | None = None
        # The largest first, so that the others fit into its memory.
        graphs = [*others.values(), *decodes, *([short] if short else [])]
        for graph in sorted(graphs, key=lambda graph: -graph.num_tokens):
            graph.capture(first)
            first = first or graph
        torch.cuda.synchronize(batch.device)
        slow_decodes = _slow_sizes([step for step in decodes if not step.shares_prefixes], ranks)
        decodes = [step for step in decodes if step.num_tokens not in slow_decodes]
        slow_others = _slow_sizes([others[size] for size in timed_sizes(others)], ranks)
        others = {size: step for size, step in others.items() if size.num_tokens not in slow_others}
        free, _ = torch.cuda.mem_get_info(batch.device)
        logger.info(
            "cuda graphs captured num_decode_graphs=%d num_other_graphs=%d max_tokens=%d bytes=%d "
            "seconds=%.1f",
            len(decodes) + (short is not None),
            len(others),
            max_num_tokens,
            free_before - free,
            time.perf_counter() - started_at,
        )
        return cls(decodes, others, short)

    def fitting(self, rows: Rows, *, shares_prefixes: bool = False) -> StepGraph | None:
        """Returns a graph that a step fits into, with little padding, or None.

        Args:
            rows: Its rows.
            shares_prefixes: Whether some share a prefix. A graph that reads prefixes once is then
                returned if there is one with little more padding than the smallest.
        """
        if rows.is_decode:
            if self._short and rows.num_rows == 1 and rows.num_computed[0] < MAX_TOKENS:
                return self._short
            graphs = self._decodes[shares_prefixes and rows.num_rows >= MIN_SHARING_ROWS]
            graphs = graphs or self._decodes[False]
            if rows.num_rows <= graphs[-1].num_rows:
                return graphs[bisect_left(graphs, rows.num_rows, key=lambda graph: graph.num_rows)]
        plain = self._fitting_plain(rows)
        if shares_prefixes and self._sharing_others:
            graph = _smallest(self._sharing_others, rows)
            # Products of many more tokens cost more than what is saved.
            if graph is not None and (
                plain is None or graph.num_tokens <= _MAX_SHARING_PADDING * plain.num_tokens
            ):
                return graph
        return plain

    def _fitting_plain(self, rows: Rows) -> StepGraph | None:
        """Returns the smallest graph with prompts that reads prefixes for each row, or None."""
        for (has_decodes, _), graphs in self._others.items():
            if rows.num_decodes and not has_decodes:
                continue
            graph = _smallest(graphs, rows)
            if graph is not None:
                return graph
        return None


def _smallest(graphs: Sequence[StepGraph], rows: Rows) -> StepGraph | None:
    """Returns the graph for the fewest tokens that fits, of some with equally many rows."""
    if rows.num_rows >= graphs[0].num_rows or rows.num_tokens > graphs[-1].num_tokens:
        return None
    return graphs[bisect_left(graphs, rows.num_tokens, key=lambda graph: graph.num_tokens)]


def _slow_sizes(graphs: Sequence[StepGraph], ranks: Ranks) -> set[int]:
    """Returns the numbers of tokens of the graphs that take longer than a larger one."""
    if not graphs:
        return set()
    seconds = ranks.from_first(tuple(graph.time_replay() for graph in graphs))
    sizes = [graph.num_tokens for graph in graphs]
    return set(sizes).difference(worthwhile_sizes(sizes, seconds))


def _fastest_times(run: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Returns the fastest of several runs, in seconds: launch on the host, and in all."""
    run()
    times = []
    for _ in range(_NUM_TIMED_RUNS):
        torch.cuda.synchronize(device)
        started_at = time.perf_counter()
        run()
        launched_at = time.perf_counter()
        torch.cuda.synchronize(device)
        times.append((launched_at - started_at, time.perf_counter() - started_at))
    return min(host for host, _ in times), min(total for _, total in times)
