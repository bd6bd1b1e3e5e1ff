"""The other ranks of an engine, as the first one sees them: a process each."""

import logging
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection, util
from typing import TYPE_CHECKING, Any, Self

from engine_service.core.types import StepPlan
from engine_service.errors import EngineFailed, StartupError
from engine_service.worker.process_group import Place
from engine_service.worker.rank import RankOptions
from engine_service.worker.rank_process import PING, run_rank
from servicekit.child_process import start_without_signals

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_EXIT_SECONDS = 5.0
_NOTICE_SECONDS = 2.0
_SILENCE_SECONDS = 2.0

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
        faults: Carries the reason why it ends; closed when it has ended.
    """

    def __init__(self, options: RankOptions, place: Place, log_level: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.rank = place.rank
        self.commands, commands = context.Pipe()
        self.faults, faults = context.Pipe(duplex=False)
        self.process: SpawnProcess = context.Process(
            target=run_rank,
            args=(options, place, commands, faults, log_level),
            name=f"pagestream-engine-rank-{place.rank}",
            daemon=True,
        )
        start_without_signals(self.process)
        # Otherwise they would stay open when the process ends.
        commands.close()
        faults.close()

    def lost(self, *, is_starting: bool) -> RankLost:
        """Returns why the process ends, once `faults` has something to read."""
        with suppress(EOFError, OSError):
            text: str = self.faults.recv()
            return StartupError(f"rank {self.rank}: {text}")
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
    """Waits for the end of any rank, in a thread.

    Attributes:
        lost: Why a rank has ended unasked, or None.
        noticed: Set once `lost` is known.
        is_started: Whether all ranks have started.
        is_closing: Whether ranks may end from now on.
    """

    def __init__(self) -> None:
        self.lost: RankLost | None = None
        self.noticed = threading.Event()
        self.is_started = False
        self.is_closing = False

    def start(self, peers: Sequence[_Peer], on_lost: Callable[[RankLost], None] | None) -> None:
        """Starts the thread, which ends with the first rank."""
        threading.Thread(
            target=self._run, args=(peers, on_lost), name="rank-watch", daemon=True
        ).start()

    def _run(self, peers: Sequence[_Peer], on_lost: Callable[[RankLost], None] | None) -> None:
        by_faults: dict[Any, _Peer] = {peer.faults: peer for peer in peers}
        first = connection.wait(list(by_faults))[0]
        if self.is_closing:
            return
        self.lost = by_faults[first].lost(is_starting=not self.is_started)
        self.noticed.set()
        if on_lost is not None:
            on_lost(self.lost)


class Peers:
    """The processes of all ranks but the first. One thread may use it.

    A call may raise one of `CONSEQUENCES` if a rank has ended. The processes are killed when this
    object is dropped, and before multiprocessing waits for them at the end of this process.
    """

    def __init__(self) -> None:
        """Without any other rank."""
        self._peers: list[_Peer] = []
        self._watch = _Watch()
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

    def note_started(self) -> None:
        """Notes that all have started: from now on, a loss is a failure of the engine."""
        self._watch.is_started = True

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
        """Sends a step plan to all."""
        if self._peers:
            message = pickle.dumps(plan, pickle.HIGHEST_PROTOCOL)
            for peer in self._peers:
                peer.commands.send_bytes(message)

    def ping(self) -> None:
        """Waits until each has answered; says which one does not."""
        for peer in self._peers:
            peer.commands.send_bytes(PING)
        for peer in self._peers:
            if not peer.commands.poll(_SILENCE_SECONDS):
                logger.warning("rank silent rank=%d seconds=%g", peer.rank, _SILENCE_SECONDS)
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


NO_PEERS = Peers()
"""Of an engine with a single rank."""
