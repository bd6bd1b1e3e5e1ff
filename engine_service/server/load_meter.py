"""The engine's load and its measured rates."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from engine_service.core.types import EngineInfo, StepStats

_NOTICE_SECONDS = 0.1
"""Subscribers learn of a change at most this much later."""

_MEMORY_SECONDS = 10.0
"""Busy time after which a measurement has 1/e of a new one's weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load reported to routers; rates are tokens per second, 0 before any measurement."""

    is_draining: bool = False
    num_running: int = 0
    num_waiting: int = 0
    num_waiting_prefill_tokens: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0


class _Rate:
    """Amount over time, both summed with exponentially decaying weights.

    The quotient of the sums, unlike a mean of quotients, gives a large step more weight than a
    small one, whose duration is mostly overhead.
    """

    def __init__(self) -> None:
        self.amount = 0.0
        self.seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        fading = math.exp(-seconds / _MEMORY_SECONDS)
        self.amount = self.amount * fading + amount
        self.seconds = self.seconds * fading + seconds

    @property
    def value(self) -> float:
        return self.amount / self.seconds if self.seconds > 0 else 0.0


class LoadMeter:
    """Keeps the newest load, measures rates from steps and notifies subscribers of changes.

    A step without prompt tokens measures decoding; one without decoding measures prefill. The time
    of a mixed step is split. Decoding gets the average time of a pure decoding step, since that
    time is spent reading weights and hardly depends on the batch. Prefill gets the rest, but at
    least half its share by token count, so that noise cannot make a small prompt look free. The
    prefill rate is thus the rate alongside decoding, without the cost of decoding.
    """

    def __init__(self) -> None:
        self._stats = StepStats()
        self._num_blocks = 0
        self._is_draining = False
        self._prefill = _Rate()
        self._decode = _Rate()
        self._decode_steps = _Rate()
        self._subscribers: set[Callable[[], None]] = set()
        self._notice: asyncio.TimerHandle | None = None
        self._load = Load()

    @property
    def load(self) -> Load:
        """The newest load; a changed load is a new object."""
        return self._load

    def start(self, info: EngineInfo) -> None:
        """Sets the size of the pool; all blocks are free."""
        self._num_blocks = info.num_blocks
        self._stats = StepStats(num_free_blocks=info.num_blocks)
        self._renew()

    def drain(self) -> None:
        """Notifies subscribers at once that new requests are refused."""
        self._is_draining = True
        self._renew()
        self._tell()

    def update(self, stats: StepStats) -> None:
        """Records a step's statistics; subscribers learn of it within 100 ms."""
        self._stats = stats
        self._measure(stats)
        if self._renew() and self._notice is None:
            self._notice = asyncio.get_running_loop().call_later(_NOTICE_SECONDS, self._tell)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Registers a callback for when the load may have changed, at most every 100 ms."""
        self._subscribers.add(callback)

    def unsubscribe(self, callback: Callable[[], None]) -> None:
        """Removes a callback."""
        self._subscribers.discard(callback)

    def close(self) -> None:
        """Cancels a notice that is still pending."""
        if self._notice is not None:
            self._notice.cancel()

    def _measure(self, stats: StepStats) -> None:
        prefill, decode = stats.num_prefill_tokens, stats.num_decode_tokens
        seconds = stats.step_seconds
        if prefill and decode:
            share = seconds * prefill / (prefill + decode)
            steps_per_second = self._decode_steps.value
            rest = seconds - 1 / steps_per_second if steps_per_second else share
            self._prefill.add(prefill, max(rest, share / 2))
        elif prefill:
            self._prefill.add(prefill, seconds)
        elif decode:
            self._decode.add(decode, seconds)
            self._decode_steps.add(1, seconds)

    def _renew(self) -> bool:
        load = Load(
            is_draining=self._is_draining,
            num_running=self._stats.num_running,
            num_waiting=self._stats.num_waiting,
            num_waiting_prefill_tokens=self._stats.num_waiting_prefill_tokens,
            num_free_blocks=self._stats.num_free_blocks,
            num_blocks=self._num_blocks,
            prefill_rate=self._prefill.value,
            decode_rate=self._decode.value,
        )
        is_changed = load != self._load
        if is_changed:
            self._load = load
        return is_changed

    def _tell(self) -> None:
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        for callback in list(self._subscribers):
            callback()
