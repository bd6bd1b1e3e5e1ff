"""The other ranks of an engine, as the first one sees them: a process each."""

import logging
import math
import multiprocessing
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing import connection, util
from typing import TYPE_CHECKING, Any, Self

from engine_service.core.types import RankStats, StepPlan
from engine_service.errors import EngineFailed, StartupError
from engine_service.worker.process_group import Place
from engine_service.worker.rank import RankOptions
from engine_service.worker.rank_meter import REPORT_SECONDS, RankMeter, reporting
from engine_service.worker.rank_process import PING, run_rank
from servicekit.child_process import start_without_signals

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_EXIT_SECONDS = 5.0
_NOTICE_SECONDS = 2.0
_SILENCE_SECONDS = 2.0
_MAX_REPORTS = 1024
"""Kept while the core does not take them."""

logger = logging.getLogger(__name__)

RankLost = StartupError | EngineFailed
"""Why a rank ended: while it started, or later."""

CONSEQUENCES = (RuntimeError, EOFError, OSError)
"""What the end of another rank does to a call that needs it."""


class _Peer:
    """One other rank.

    Attributes:
        rank: Its number.
        process: Its process.
        commands: Carries plans and pings there, and their answers back.
        reports: Carries its `RankStats`, or the reason why it cannot start; closed when it has
            ended.
    """

    def __init__(self, options: RankOptions, place: Place, log_level: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.rank = place.rank
        self.commands, commands = context.Pipe()
        self.reports, reports = context.Pipe(duplex=False)
        self._heard_at = math.inf
        self._is_silent = False
        self._is_understood = True
        self.process: SpawnProcess = context.Process(
            target=run_rank,
            args=(options, place, commands, reports, log_level),
            name=f"pagestream-engine-rank-{place.rank}",
            daemon=True,
        )
        start_without_signals(self.process)
        # Otherwise they would stay open when the process ends.
        commands.close()
        reports.close()

    def note_started(self) -> None:
        """Notes that it reports from now on."""
        self._heard_at = time.monotonic()

    def hear(self, *, is_starting: bool) -> RankStats | RankLost | None:
        """Reads a report, or why the process ends; None is a report that cannot be true."""
        try:
            message = self.reports.recv()
        except (EOFError, OSError):
            return self._lost(is_starting=is_starting)
        # Whatever it is, the steps do not need it.
        except Exception as error:
            message = error
        self._heard_at, self._is_silent = time.monotonic(), False
        if isinstance(message, str):
            return StartupError(f"rank {self.rank}: {message}")
        if isinstance(message, RankStats) and message.rank == self.rank and message.is_sound:
            return message
        if self._is_understood:
            self._is_understood = False
            logger.warning("rank report unusable rank=%d report=%.200r", self.rank, message)
        return None

    def check_silence(self) -> None:
        """Says so once if it does not report any more; the process may be stopped."""
        seconds = time.monotonic() - self._heard_at
        if seconds > _SILENCE_SECONDS:
            self.note_silence(seconds)

    def note_silence(self, seconds: float) -> None:
        """Says once that it does not report, or does not answer."""
        if not self._is_silent:
            self._is_silent = True
            logger.warning("rank silent rank=%d seconds=%.1f", self.rank, seconds)

    def _lost(self, *, is_starting: bool) -> RankLost:
        self.process.join(_EXIT_SECONDS)
        code = self.process.exitcode
        if code is None:
            how = "closed its pipes and has not ended yet"
        elif code < 0:
            how = f"was ended by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        kind = StartupError if is_starting else EngineFailed
        return kind(f"rank {self.rank}: its process {how}; the log above may say why")


class _Watch:
    """Hears the reports of all ranks, and waits for the end of any, in a thread.

    The thread never asks a device, which may hang.

    Attributes:
        lost: Why a rank has ended unasked, or None.
        noticed: Set once `lost` is known.
        is_started: Whether all ranks have started.
        is_closing: Whether ranks may end from now on.
        reports: What all ranks have reported and nobody has taken.
    """

    def __init__(self) -> None:
        self.lost: RankLost | None = None
        self.noticed = threading.Event()
        self.is_started = False
        self.is_closing = False
        self.reports: deque[RankStats] = deque(maxlen=_MAX_REPORTS)
        self._own_reports = ExitStack()

    def start(self, peers: Sequence[_Peer], on_lost: Callable[[RankLost], None] | None) -> None:
        """Starts the thread, which ends with the first rank."""
        threading.Thread(
            target=self._run, args=(peers, on_lost), name="rank-watch", daemon=True
        ).start()

    def note_started(self, meter: RankMeter) -> None:
        """Notes that all ranks have started; the first one reports, too, from now on."""
        self.is_started = True
        self._own_reports.enter_context(reporting(meter, self.reports.append))

    def close(self) -> None:
        """Ends the reports of the first rank."""
        self._own_reports.close()

    def _run(self, peers: Sequence[_Peer], on_lost: Callable[[RankLost], None] | None) -> None:
        by_reports: dict[Any, _Peer] = {peer.reports: peer for peer in peers}
        while self.lost is None:
            ready = connection.wait(list(by_reports), REPORT_SECONDS)
            if self.is_closing:
                return
            for reports in ready:
                self._hear(by_reports[reports])
            for peer in peers:
                peer.check_silence()
        self.noticed.set()
        if on_lost is not None:
            on_lost(self.lost)

    def _hear(self, peer: _Peer) -> None:
        heard = peer.hear(is_starting=not self.is_started)
        if isinstance(heard, RankStats):
            self.reports.append(heard)
        elif heard is not None and self.lost is None:
            self.lost = heard


class Peers:
    """The processes of all ranks but the first. One thread may use it.

    A call may raise one of `CONSEQUENCES` if a rank has ended. The processes are killed when this
    object is dropped, and before multiprocessing waits for them at the end of this process.
    """

    def __init__(self) -> None:
        """Without any other rank."""
        self._peers: list[_Peer] = []
        self._watch = _Watch()
        self._meter: RankMeter | None = None
        self._kill: Callable[[], object] | None = None

    @classmethod
    def start(
        cls,
        options: RankOptions,
        places: Sequence[Place],
        on_lost: Callable[[RankLost], None] | None,
    ) -> Self:
        """Starts a process for each place.

        Args:
            options: The engine's options.
            places: The places of the other ranks.
            on_lost: Called from another thread when one has ended unasked.
        """
        peers = cls()
        # Not atexit: in a child of multiprocessing, its handlers run after the waiting.
        peers._kill = util.Finalize(
            peers, _kill_all, args=(peers._peers, peers._watch), exitpriority=10
        )
        level = logging.getLogger().getEffectiveLevel()
        try:
            for place in places:
                peers._peers.append(_Peer(options, place, level))
        except BaseException:
            peers.kill()
            raise
        peers._watch.start(peers._peers, on_lost)
        return peers

    def wait_all(self) -> None:
        """Waits for the next message of each: that it meets the others, or is ready for steps."""
        for peer in self._peers:
            peer.commands.recv_bytes()

    def note_started(self, meter: RankMeter) -> None:
        """Notes that all have started: from now on, a loss is a failure of the engine.

        Args:
            meter: Counts the steps of this process's rank.
        """
        for peer in self._peers:
            peer.note_started()
        self._meter = meter
        self._watch.note_started(meter)

    @property
    def has_lost(self) -> bool:
        """Whether another rank is known to have ended unasked."""
        return self._watch.lost is not None

    def lost(self) -> RankLost | None:
        """Returns why another rank has ended, if one has, which takes a moment to be noticed.

        Call it after one of `CONSEQUENCES`.
        """
        if self._peers:
            self._watch.noticed.wait(_NOTICE_SECONDS)
        return self._watch.lost

    def send(self, plan: StepPlan) -> None:
        """Sends a step plan to all, which this process's rank then begins."""
        if self._meter is not None:
            sent_at = time.monotonic()
            message = pickle.dumps((sent_at, plan), pickle.HIGHEST_PROTOCOL)
            for peer in self._peers:
                peer.commands.send_bytes(message)
            self._meter.begin_step(sent_at)

    def take_stats(self) -> tuple[RankStats, ...]:
        """Returns what all ranks have reported since the last call."""
        reports = self._watch.reports
        return tuple(reports.popleft() for _ in range(len(reports))) if reports else ()

    def ping(self) -> None:
        """Waits until each has answered; says which one does not."""
        for peer in self._peers:
            peer.commands.send_bytes(PING)
        for peer in self._peers:
            if not peer.commands.poll(_SILENCE_SECONDS):
                peer.note_silence(_SILENCE_SECONDS)
            peer.commands.recv_bytes()

    def close(self) -> None:
        """Lets all end, waits some seconds for it, and kills those that have not ended."""
        self._watch.is_closing = True
        try:
            for peer in self._peers:
                peer.commands.close()
            deadline = time.monotonic() + _EXIT_SECONDS
            for peer in self._peers:
                peer.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends all at once. A second call does nothing."""
        if self._kill is not None:
            self._kill()


def _kill_all(peers: Sequence[_Peer], watch: _Watch) -> None:
    watch.is_closing = True
    for peer in peers:
        peer.process.kill()
    for peer in peers:
        peer.process.join(_EXIT_SECONDS)
        peer.commands.close()
    watch.close()


NO_PEERS = Peers()
"""Of an engine with a single rank."""
