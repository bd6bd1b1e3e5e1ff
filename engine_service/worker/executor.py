"""The core's executor: the first rank is in this process, the others have one each."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from engine_service.config import CacheOptions, ModelOptions, SchedulerOptions
from engine_service.core.types import EngineInfo, RankStats, StepPlan, StepResult
from engine_service.errors import EngineFailed
from engine_service.layers.ranks import ALONE
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.worker.device import set_up_device, use_near_cpus
from engine_service.worker.peers import CONSEQUENCES, NO_PEERS, Peers, RankLost
from engine_service.worker.process_group import Rendezvous, leave
from engine_service.worker.rank import RankOptions, read_model_config, start_rank
from engine_service.worker.rank_meter import RankMeter
from engine_service.worker.worker import PendingStep, Worker
from protos.wire.sampling_params import Grammar

logger = logging.getLogger(__name__)


class RanksExecutor:
    """Runs each plan on all ranks. Implements `engine_service.core.executor.Executor`.

    The first rank's tokens are those of all: they draw the same ones.
    """

    def __init__(
        self, worker: Worker, peers: Peers, device: torch.device, cpus: set[int] | None = None
    ) -> None:
        """Takes over the other ranks; the CPUs are those to use again after the end."""
        self._worker: Worker | None = worker
        self._peers = peers
        self._device = device
        self._cpus = cpus

    def try_grammar(self, grammar: Grammar) -> None:
        """Compiles a grammar and lets it begin; raises BadGrammar. Waits for all of that."""
        assert self._worker is not None, "closed"
        self._worker.try_grammar(grammar)

    def prepare(self, grammar: Grammar) -> bool:
        """Begins to compile a grammar; returns at once, whether it is compiled."""
        assert self._worker is not None, "closed"
        return self._worker.prepare(grammar)

    def launch(self, plan: StepPlan) -> PendingStep:
        """Starts a step and returns without waiting for its tokens."""
        assert self._worker is not None, "closed"
        try:
            self._peers.send(plan)
            return self._worker.launch(plan)
        except CONSEQUENCES as error:
            self._raise_lost(error)
            raise

    def collect(self, handle: PendingStep) -> StepResult:
        """Waits for a step's tokens."""
        assert self._worker is not None, "closed"
        if self._peers.has_lost:
            # The step would never end.
            self._raise_lost(EngineFailed("a rank was lost"))
        try:
            return self._worker.collect(handle)
        except CONSEQUENCES as error:
            self._raise_lost(error)
            raise

    def check_ranks(self) -> None:
        """Waits until all ranks have answered."""
        try:
            self._peers.ping()
        except CONSEQUENCES as error:
            self._raise_lost(error)
            raise

    def take_rank_stats(self) -> tuple[RankStats, ...]:
        """Returns what the ranks have reported since the last call; nothing of a single rank."""
        return self._peers.take_stats()

    def close(self) -> None:
        """Ends the other ranks and frees model and cache. A second call does nothing."""
        if self._worker is not None:
            self._worker.close()
        # Its graphs must be gone before their process group can end.
        self._worker = None
        try:
            self._peers.close()
        finally:
            leave(self._device)
            if self._cpus is not None:
                os.sched_setaffinity(0, self._cpus)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _raise_lost(self, error: Exception) -> None:
        """Raises why another rank has ended, if that is what caused the error."""
        lost = self._peers.lost()
        if lost is not None:
            raise lost from error


def start_executor(
    model: ModelOptions,
    cache: CacheOptions,
    scheduler: SchedulerOptions,
    on_rank_lost: Callable[[RankLost], None] | None = None,
) -> tuple[RanksExecutor, EngineInfo]:
    """Loads a model and makes it ready to run steps.

    Sets torch's number of threads for the whole process if `cpu_threads` is given or several ranks
    share a CPU.

    Args:
        model: Options of the model.
        cache: Options of the cache.
        scheduler: Options of the scheduler.
        on_rank_lost: Called from another thread when a rank has ended unasked. This thread may then
            wait for it for ever. None suffices on the CPU, where waiting ends with an error.

    Raises:
        StartupError: The model is missing, broken or unsupported, the device does not exist, its
            memory is too small, or another rank could not start.
    """
    size = model.tensor_parallel_size
    device = set_up_device(model)
    checkpoint = resolve_checkpoint(model.model, with_weights=model.load_format != "dummy")
    # Before any process is started.
    read_model_config(model, checkpoint)
    options = RankOptions(model=model, cache=cache, scheduler=scheduler)
    if size == 1:
        worker, info = start_rank(options, checkpoint, device, ALONE)
        return RanksExecutor(worker, NO_PEERS, device), info
    rendezvous = Rendezvous(size, device)
    # The hub might give another rank another version.
    found = replace(options, model=replace(model, model=str(checkpoint.folder)))
    peers = Peers.start(found, [rendezvous.place(rank) for rank in range(1, size)], on_rank_lost)
    # The other ranks have inherited all CPUs.
    cpus = os.sched_getaffinity(0) if device.type == "cuda" else None
    try:
        if cpus is not None:
            use_near_cpus(device)
        peers.wait_all()
        ranks = rendezvous.join(device)
        worker, info = start_rank(options, checkpoint, device, ranks)
        peers.wait_all()
        peers.note_started(RankMeter(ranks, device))
    except BaseException as error:
        lost = peers.lost() if isinstance(error, CONSEQUENCES) else None
        peers.kill()
        leave(device)
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        if lost is not None:
            raise lost from error
        raise
    return RanksExecutor(worker, peers, device, cpus), info
