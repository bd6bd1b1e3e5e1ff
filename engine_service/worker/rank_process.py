"""The process of a rank that is not the first one."""

import contextlib
import logging
import os
import pickle
from multiprocessing.connection import Connection

import torch

from engine_service.errors import StartupError
from engine_service.models.checkpoint import resolve_checkpoint
from engine_service.worker.device import set_up_device, use_near_cpus
from engine_service.worker.process_group import Place, join, leave
from engine_service.worker.rank import RankOptions, start_rank
from engine_service.worker.rank_meter import RankMeter, reporting
from engine_service.worker.worker import Worker
from servicekit.child_process import die_with_parent
from servicekit.garbage import collect_garbage_rarely
from servicekit.log import flush_log, set_up_logging

PING = b""
"""A rank answers this with itself. Every other message is pickled: its time, and a step plan."""
MEETS = b"meets"
"""Sent when the rank is about to wait for the others."""
STARTED = b"started"

_GC_THRESHOLDS = (50_000, 10, 10)
_EXIT_FAILED = 1

logger = logging.getLogger(__name__)


def run_rank(
    options: RankOptions, place: Place, commands: Connection, reports: Connection, log_level: int
) -> None:
    """Starts a rank and runs its steps until the first rank closes the connection.

    Args:
        options: The engine's options.
        place: Which rank it is.
        commands: Where plans come from.
        reports: Where the reason is told why it cannot start, or else its `RankStats`.
        log_level: The least level that is logged.
    """
    die_with_parent()
    try:
        set_up_logging(log_level)
        device = set_up_device(options.model, place.rank)
        worker, meter = _start(options, place, commands, device)
        commands.send_bytes(STARTED)
        with reporting(meter, reports.send):
            _serve(worker, meter, commands)
    except StartupError as error:
        with contextlib.suppress(OSError):
            reports.send(str(error))
        _exit(_EXIT_FAILED)
    except Exception:
        logger.critical("rank failed rank=%d", place.rank, exc_info=True)
        _exit(_EXIT_FAILED)
    if device.type == "cuda":
        # NCCL would wait for all ranks, and for each captured graph to be freed.
        _exit(0)
    leave(device)


def _start(
    options: RankOptions, place: Place, commands: Connection, device: torch.device
) -> tuple[Worker, RankMeter]:
    if device.type == "cuda":
        use_near_cpus(device)
    checkpoint = resolve_checkpoint(
        options.model.model, with_weights=options.model.load_format != "dummy"
    )
    # Until here, the first rank does not wait where nothing could tell it that this one has ended.
    commands.send_bytes(MEETS)
    ranks = join(place, device)
    worker, _ = start_rank(options, checkpoint, device, ranks)
    return worker, RankMeter(ranks, device)


def _serve(worker: Worker, meter: RankMeter, commands: Connection) -> None:
    collect_garbage_rarely(*_GC_THRESHOLDS)
    while True:
        try:
            message = commands.recv_bytes()
        except (EOFError, ConnectionResetError):
            return
        if message == PING:
            commands.send_bytes(PING)
        else:
            sent_at, plan = pickle.loads(message)
            meter.begin_step(sent_at)
            # The tokens of this rank are those of the first one, which reports them.
            worker.launch(plan)


def _exit(code: int) -> None:
    """Ends without waiting for other ranks, as leaving their group might."""
    flush_log()
    os._exit(code)
