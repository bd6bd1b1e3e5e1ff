"""What an engine says of itself to someone who is not its router."""

import grpc

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire.channel import client_options

_SECONDS = 10.0


async def is_idle(address: str) -> bool:
    """Returns whether no request waits or runs, and every block is free."""
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        call = engine_pb2_grpc.EngineServiceStub(channel).GenerateMany(timeout=_SECONDS)
        load = (await call.read()).load
        call.cancel()
    is_free = load.free_block_count == load.total_block_count
    return is_free and not load.running_count and not load.waiting_count


async def cached_blocks(address: str) -> set[int]:
    """Returns the hashes of the blocks in the prefix cache."""
    blocks: set[int] = set()
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        call = engine_pb2_grpc.EngineServiceStub(channel).WatchCache(
            engine_pb2.WatchCacheRequest(), timeout=_SECONDS
        )
        async for message in call:
            blocks.update(message.snapshot.block_hashes)
            if message.snapshot.last:
                break
        call.cancel()
    return blocks
