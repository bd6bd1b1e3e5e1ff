"""The other ranks of an engine, as the first one sees them: a process each."""

import atexit
import logging
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection
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
        """Returns why the process has ended, once `faults` has something to read."""
        with suppress(EOFError, OSError):
            text: str = self.faults.recv()
            return StartupError(f"rank {self.rank}: {text}")
        self.process.join(_EXIT_SECONDS)
        code = self.process.exitcode or 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        kind = StartupError if is_starting else EngineFailed
        return kind(f"rank {self.rank}: its process {how}; the log above may say why")


class Peers:
    """The processes of all ranks but the first. One thread may use it.

    A call may raise one of `CONSEQUENCES` if a rank has ended.
    """

    def __init__(self, peers: Sequence[_Peer]) -> None:
        self._peers = peers
        self._is_started = False
        self._is_closing = False
        self._lost: RankLost | None = None
        self._watched = threading.Event()

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
        level = logging.getLogger().getEffectiveLevel()
        peers = cls([_Peer(options, place, level) for place in places])
        # Runs before multiprocessing waits for its processes, which would take for ever.
        atexit.register(peers.kill)
        threading.Thread(
            target=peers._watch, args=(on_lost,), name="rank-watch", daemon=True
        ).start()
        return peers

    def wait_started(self) -> None:
        """Waits until all are ready to run steps."""
        for peer in self._peers:
            peer.commands.recv_bytes()
        self._is_started = True

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

    def lost(self) -> RankLost | None:
        """Returns why another rank has ended, if one has, which takes a moment to be noticed.

        Call it after one of `CONSEQUENCES`.
        """
        if self._peers:
            self._watched.wait(_NOTICE_SECONDS)
        return self._lost

    def close(self) -> None:
        """Lets all end, and waits for it."""
        self._is_closing = True
        atexit.unregister(self.kill)
        for peer in self._peers:
            peer.commands.close()
        self._end(_EXIT_SECONDS)

    def kill(self) -> None:
        """Ends all at once."""
        self._is_closing = True
        self._end(0.0)

    def _end(self, seconds: float) -> None:
        for peer in self._peers:
            peer.process.join(seconds)
            peer.process.kill()
            peer.process.join(_EXIT_SECONDS)

    def _watch(self, on_lost: Callable[[RankLost], None] | None) -> None:
        by_faults: dict[Any, _Peer] = {peer.faults: peer for peer in self._peers}
        first = connection.wait(list(by_faults))[0]
        if self._is_closing:
            return
        self._lost = by_faults[first].lost(is_starting=not self._is_started)
        self._watched.set()
        if on_lost is not None:
            on_lost(self._lost)


NO_PEERS = Peers([])
"""Of an engine with a single rank."""
