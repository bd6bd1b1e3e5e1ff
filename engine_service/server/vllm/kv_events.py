"""Makes the messages of SubscribeKvEvents from the changes of the mirrored blocks."""

import itertools
import time

from smg_grpc_proto.generated import common_pb2 as pb

from engine_service.server.vllm.block_mirror import Block, Change, SnapshotPart
from engine_service.server.vllm.message import Message

_SIGN_BIT = 1 << 63


class KvEvents:
    """Numbers and writes the events of one subscriber."""

    def __init__(self) -> None:
        self._event_ids = itertools.count(1)

    def batch(self, change: Change | SnapshotPart) -> Message:
        """Returns one message of the stream.

        The first one of a snapshot says that all earlier blocks are gone.
        """
        batch = pb.KvEventBatch(sequence_number=change.sequence_number, timestamp=time.time())
        if isinstance(change, SnapshotPart):
            batch.snapshot.CopyFrom(
                pb.KvSnapshotChunk(index=change.index, count=change.count, blocks=change.num_blocks)
            )
            if not change.index:
                batch.events.add().cleared.SetInParent()
            _add_stored(batch, change.stored)
            return batch
        if change.removed:
            hashes = [_signed(found) for found in change.removed]
            batch.events.add().removed.block_hashes.extend(hashes)
        _add_stored(batch, change.stored)
        for event in batch.events:
            event.event_id = next(self._event_ids)
        return batch


def _add_stored(batch: Message, blocks: list[Block]) -> None:
    """Adds one event for each chain of blocks that follow each other."""
    stored: Message = None
    last = None
    for block in blocks:
        if last is None or block.parent != last:
            stored = batch.events.add().stored
            stored.tier = pb.KV_CACHE_TIER_DEVICE
            if block.parent:
                stored.parent_block_hash = _signed(block.parent)
        stored.blocks.add(
            block_hash=_signed(block.hash),
            token_ids=block.token_ids,
            block_size=len(block.token_ids),
        )
        last = block.hash


def _signed(value: int) -> int:
    return value - (1 << 64) if value & _SIGN_BIT else value
