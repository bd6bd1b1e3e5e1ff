"""Many fake engines in one process, each with a full prefix cache that it makes up when asked.

python -m benchmarks.router.cached_engines --engines 64 --blocks 5000000
"""

import argparse
import asyncio
import contextlib
import random
import sys
from array import array
from collections.abc import Iterator

from benchmarks.router.lean_engine import LeanEngine, until_signalled
from protos.pagestream.engine.v1 import engine_pb2
from protos.wire import block_hash
from tests.fakes.fake_engine import FakeEngineConfig

BLOCK_SIZE = 16
PROMPT_TOKENS = 32_768
_CHUNK = 1 << 14
_DEPTHS = (1.0, 0.75, 0.25, 0.03)
"""How much of a prompt its first holder, the next engine and so on have."""


def prompt(number: int) -> "array[int]":
    """Returns the tokens of one of as many prompts as there are engines."""
    return array("i", random.Random(f"prompt {number}").choices(range(1000), k=PROMPT_TOKENS))


def _prompt_hashes(number: int, fingerprint: str) -> list[int]:
    root = block_hash.root_digest(fingerprint, cache_salt="")
    digests = block_hash.block_digests(root, prompt(number), BLOCK_SIZE)
    return [block_hash.low_64_bits(digest) for digest in digests]


class CachedEngine(LeanEngine):
    """Engine `number` of so many; its blocks are parts of prompts, and random ones."""

    def __init__(self, number: int, num_engines: int, num_blocks: int) -> None:
        # Room for as many again, so that the router finds nothing wrong with their number.
        config = FakeEngineConfig(
            block_size=BLOCK_SIZE, max_model_len=1 << 16, num_blocks=2 * num_blocks
        )
        super().__init__(config)
        self._number = number
        self._num_engines = num_engines
        self._num_blocks = num_blocks

    def _hashes(self) -> "array[int]":
        hashes = array("Q")
        for distance, depth in enumerate(_DEPTHS):
            held = _prompt_hashes(
                (self._number - distance) % self._num_engines, self.config.fingerprint
            )
            hashes.extend(held[: int(depth * len(held))])
        num_others = self._num_blocks - PROMPT_TOKENS // BLOCK_SIZE
        hashes.frombytes(random.Random(self._number).randbytes(8 * num_others))
        return hashes

    def _snapshot(self) -> Iterator[engine_pb2.WatchCacheResponse]:
        hashes = self._hashes()
        for start in range(0, len(hashes), _CHUNK):
            yield engine_pb2.WatchCacheResponse(
                epoch=self.cache.epoch,
                sequence_number=self.cache.sequence_number,
                snapshot=engine_pb2.CacheSnapshot(
                    block_hashes=hashes[start : start + _CHUNK],
                    first=start == 0,
                    last=start + _CHUNK >= len(hashes),
                ),
            )


async def _serve(num_engines: int, num_blocks: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            CachedEngine(number, num_engines, num_blocks // num_engines)
            for number in range(num_engines)
        ]
        for engine in engines:
            await stack.enter_async_context(engine)
        print(",".join(engine.address for engine in engines))
        sys.stdout.flush()
        await until_signalled()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=5_000_000)
    options = parser.parse_args()
    asyncio.run(_serve(options.engines, options.blocks))
