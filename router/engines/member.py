"""One engine of the fleet: its client, this router's requests on it, its part of the index."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from router.engines.cache_bounds import CacheBounds, CachePace
from router.engines.client import ClientSettings, EngineClient
from router.engines.lifecycle import Lifecycle
from router.engines.request_stream import RequestStream
from router.placement.policy import Placement
from router.placement.prefix_index import SLICE_BLOCKS, PrefixIndex, Reservation
from router.types.engine_events import Admitted, EngineEvent, TokenRequest, Tokens
from router.types.engine_state import CacheUpdate, EngineSnapshot, ModelInfo

# A load report that arrives later than this after a submission includes it: engines report at least
# every 100 ms while their load changes, and a report may have left before the submission arrived.
_REPORT_SECONDS = 0.1

# An engine stores a prompt's blocks before it sends the first token, and reports them on another
# stream. After this time the report has arrived, or the engine does not keep the blocks.
_CONFIRM_SECONDS = 2.0

_TURN_SECONDS = 0.002
"""The most time per event loop iteration spent on a large index change, within one slice."""


class Attempt:
    """One request on one engine, from its submission to its end.

    Iterate over it for the events; `close` must be called once in any case.
    """

    def __init__(
        self,
        member: "FleetMember",
        stream: RequestStream,
        reservation: Reservation,
        num_prefill_tokens: int,
    ) -> None:
        self.num_prefill_tokens = num_prefill_tokens
        self.submit_time = asyncio.get_running_loop().time()
        self._member = member
        self._stream = stream
        self._reservation: Reservation | None = reservation

    def close(self) -> None:
        """Cancels the request on the engine unless it ended, and removes all traces of it."""
        self._stream.close()
        self._member.report(self)
        if self._reservation is not None:
            self._member.index.release(self._reservation)

    def __aiter__(self) -> "Attempt":
        return self

    def __anext__(self) -> Awaitable[EngineEvent]:
        return self._stream.__anext__() if self._reservation is None else self._first_event()

    async def _first_event(self) -> EngineEvent:
        """Returns the next of the events up to the first with tokens."""
        event = await self._stream.__anext__()
        if isinstance(event, Admitted):
            self._member.report(self)
        elif isinstance(event, Tokens) and self._reservation is not None:
            self._member.confirm(self._reservation)
            self._reservation = None
        return event


class FleetMember:
    """One engine of the fleet; listens to its client.

    Attributes:
        address: "host:port" of the engine.
        index: The index of the whole fleet.
        life: The engine's life.
        client: The connection.
    """

    def __init__(
        self,
        address: str,
        index: PrefixIndex,
        check_model: Callable[["FleetMember", ModelInfo], str],
        state_changed: Callable[[], None],
        settings: ClientSettings | None = None,
    ) -> None:
        self.address = address
        self.index = index
        self.life = Lifecycle(address, state_changed)
        self.client = EngineClient(self.life, self, settings)
        self._check_model = check_model
        self._last_cache_event: float | None = None
        self._bounds: CacheBounds | None = None
        self._pace = CachePace()
        self._unreported: dict[Attempt, None] = {}
        self._num_unreported_tokens = 0
        self._confirmed: deque[tuple[float, Reservation]] = deque()
        """Reservations and when they end, in this order."""

    def is_of(self, model: ModelInfo) -> bool:
        """Returns whether a request made for a model may be sent to it."""
        accepted = self.life.accepted_model
        return accepted is not None and accepted.identity == model.identity

    def leave(self) -> None:
        """Takes no new requests; the connection is closed when the last request has ended."""
        self.life.leave()
        if not self.client.num_open_requests:
            self.life.idle()

    def snapshot(self) -> EngineSnapshot:
        """Returns the current state of the engine."""
        life = self.life
        return EngineSnapshot(
            address=self.address,
            state=life.state,
            model=life.model,
            load=life.load,
            num_in_flight=self.client.num_open_requests,
            num_in_flight_prefill_tokens=self._num_unreported_tokens,
            num_indexed_blocks=self.index.num_blocks(self.address),
            cache_event_age=None
            if self._last_cache_event is None
            else time.monotonic() - self._last_cache_event,
            detail=life.detail,
        )

    def submit(self, request: TokenRequest, hashes: Sequence[int], placement: Placement) -> Attempt:
        """Sends a request to the engine.

        Args:
            request: The request.
            hashes: Hashes of the full blocks of its tokens; the engine will hold them soon.
            placement: Why this engine was chosen.

        Raises:
            EngineError: The engine is not connected.
            QueueFull: This router has too many requests in progress on the engine.
        """
        stream = self.client.submit(request)
        num_uncached = request.num_known_tokens - placement.num_predicted_cached_tokens
        attempt = Attempt(self, stream, self.index.reserve(self.address, hashes), num_uncached)
        self._unreported[attempt] = None
        self._num_unreported_tokens += num_uncached
        return attempt

    def report(self, attempt: Attempt) -> None:
        """Notes that the engine's load reports now include the request, or that it ended."""
        if attempt in self._unreported:
            del self._unreported[attempt]
            self._num_unreported_tokens -= attempt.num_prefill_tokens

    def confirm(self, reservation: Reservation) -> None:
        """Ends a reservation once the engine has told that it has the blocks, or should have."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _CONFIRM_SECONDS
        if not self._confirmed:
            # One timer for all of them.
            loop.call_at(end, self._release_confirmed)
        self._confirmed.append((end, reservation))

    def _release_confirmed(self) -> None:
        loop = asyncio.get_running_loop()
        now, waiting = loop.time(), self._confirmed
        try:
            while waiting and waiting[0][0] <= now:
                self.index.release(waiting.popleft()[1])
        finally:
            if waiting:
                loop.call_at(waiting[0][0], self._release_confirmed)

    # Callbacks of the client.

    def check_model(self, model: ModelInfo) -> str:
        """Returns why the engine may not serve, or an empty string; makes room in the index."""
        refusal = self._check_model(self, model)
        if not refusal:
            self._bounds = CacheBounds(model)
            self.index.add_engine(self.address, self._bounds.num_blocks, model.epoch)
        return refusal

    def cache_position(self) -> tuple[int, int]:
        """Returns the position of the index in the engine's cache changes."""
        return self.index.position(self.address)

    async def cache_changed(self, update: CacheUpdate) -> bool:
        """Applies a change to the index, in slices; False asks for a new snapshot.

        Raises:
            ConnectionLost: The engine may not send this change.
        """
        if self._bounds is None:
            return False
        self._bounds.check(update)
        self._last_cache_event = now = time.monotonic()
        wait = self._pace.wait(update, self._bounds.num_blocks, now)
        if wait:
            await asyncio.sleep(wait)
        if len(update.stored) + len(update.removed) <= SLICE_BLOCKS:
            return self.index.apply(self.address, update)
        async with self.index.large_updates:
            turn_ends = time.perf_counter() + _TURN_SECONDS
            for follows in self.index.apply_in_slices(self.address, update):
                if not follows:
                    return False
                # Other tasks in the loop may need far longer for their turn than a slice does.
                if time.perf_counter() > turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = time.perf_counter() + _TURN_SECONDS
        return True

    def load_reported(self) -> None:
        """Stops counting as unreported the requests that the report must include."""
        latest = asyncio.get_running_loop().time() - _REPORT_SECONDS
        while self._unreported:
            oldest = next(iter(self._unreported))
            if oldest.submit_time > latest:
                break
            self.report(oldest)
