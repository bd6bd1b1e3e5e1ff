"""The router's WatchCache stream to one engine, opened again whenever it ends.

What is known of a cache is only a hint: whatever goes wrong here, no request is affected.
"""

import asyncio
import logging
import random
from collections import Counter
from typing import Protocol

import grpc

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from router.engines.connection_loss import ConnectionLost, Fault, checked, loss_of
from router.engines.convert import to_cache_update
from router.types.engine_state import CacheUpdate, ModelInfo

_logger = logging.getLogger(__name__)


class CacheListener(Protocol):
    """Callbacks to whoever keeps the known cache state: the fleet's member, above this layer."""

    def cache_position(self) -> tuple[int, int]:
        """Returns epoch and sequence number of the known cache state, (0, 0) for none."""

    async def cache_changed(self, update: CacheUpdate) -> bool:
        """Applies a change; False asks for a new snapshot."""


class CacheWatch:
    """Follows the prefix cache of one engine.

    Args:
        address: "host:port" of the engine.
        listener: Gets the changes.
        num_faults: Faults of the engine, by kind; counted here too.
        min_backoff: Wait in seconds before the first attempt to watch again; doubles up to
            `max_backoff`. Each wait is a random half to all of it.
        max_backoff: The longest wait between attempts.
    """

    def __init__(
        self,
        address: str,
        listener: CacheListener,
        num_faults: Counter[Fault],
        *,
        min_backoff: float,
        max_backoff: float,
    ) -> None:
        self._address = address
        self._listener = listener
        self._num_faults = num_faults
        self._min_backoff = min_backoff
        self._max_backoff = max_backoff

    async def run(self, stub: engine_pb2_grpc.EngineServiceStub, model: ModelInfo) -> None:
        """Watches the cache of this model until cancelled."""
        loop = asyncio.get_running_loop()
        backoff = self._min_backoff
        while True:
            started = loop.time()
            try:
                await self._watch_once(stub, model)
            except (ConnectionLost, grpc.aio.AioRpcError) as error:
                loss = loss_of(error)
                if loss.fault is not None:
                    self._num_faults[loss.fault] += 1
                _logger.warning("cache watch lost engine=%s detail=%s", self._address, loss.detail)
            # Receiving messages proves nothing: they may be the same nonsense each time.
            if loop.time() - started > self._max_backoff:
                backoff = self._min_backoff
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(2 * backoff, self._max_backoff)

    async def _watch_once(self, stub: engine_pb2_grpc.EngineServiceStub, model: ModelInfo) -> None:
        """Follows one WatchCache call to its end."""
        epoch, sequence_number = self._listener.cache_position()
        call = stub.WatchCache(
            engine_pb2.WatchCacheRequest(epoch=epoch, sequence_number=sequence_number)
        )
        try:
            async for message in call:
                if checked(message).epoch != model.epoch:
                    # Open streams stay with the old engine if the address moves; new ones do not.
                    raise ConnectionLost(
                        f"its cache has epoch {message.epoch}, its model {model.epoch}",
                        Fault.MISMATCH,
                    )
                if not await self._listener.cache_changed(to_cache_update(message)):
                    _logger.warning(
                        "cache gap found engine=%s epoch=%d sequence_number=%d held=%d",
                        self._address,
                        message.epoch,
                        message.sequence_number,
                        sequence_number,
                    )
                    break
                sequence_number = message.sequence_number
        finally:
            call.cancel()
