"""The chained block hash, which engines and routers must compute identically.

A block's digest is xxh3-128 over its parent's digest and its token IDs as little-endian int32.
The first block's parent is the root, which separates models, adapters and salts. On the wire, a
digest is its low 64 bits. Golden vectors: `tests/contract/test_block_hash.py`.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import itemgetter

import xxhash

SCHEME = "xxh3-128-chain-int32le-v1"
DIGEST_SIZE = 16


def root_digest(model_fingerprint: str, adapter: str = "", cache_salt: str = "") -> bytes:
    """Returns the parent of every first block, 16 bytes.

    Args:
        model_fingerprint: The fingerprint that the engine reports.
        adapter: The adapter's name, empty for the base model.
        cache_salt: Only requests with an equal salt share blocks.
    """
    root = _model_root(model_fingerprint, adapter).copy()
    _add(root, cache_salt)
    return root.digest()


@lru_cache(maxsize=256)
def _model_root(model_fingerprint: str, adapter: str) -> xxhash.xxh3_128:
    """Returns what the roots of a model have in common; salts, which are secrets, are not kept."""
    root = xxhash.xxh3_128(SCHEME.encode())
    _add(root, model_fingerprint)
    _add(root, adapter)
    return root


def _add(root: xxhash.xxh3_128, part: str) -> None:
    encoded = part.encode()
    # The length makes ("ab", "c") and ("a", "bc") differ.
    root.update(struct.pack("<I", len(encoded)))
    root.update(encoded)


def block_digests(parent: bytes, token_ids: "array[int]", block_size: int) -> list[bytes]:
    """Returns the digests of the full blocks of `token_ids`, each 16 bytes.

    Args:
        parent: The digest of the block before the first token, or the root.
        token_ids: Tokens, typecode "i"; those after the last full block are not read.
        block_size: Tokens of one block.
    """
    if token_ids.typecode != "i" or token_ids.itemsize != 4:
        raise TypeError(f'token_ids must be an array of typecode "i", not "{token_ids.typecode}"')
    if sys.byteorder == "big":
        token_ids = array("i", token_ids)
        token_ids.byteswap()
    digests = []
    digest_of = xxhash.xxh3_128_digest
    for block in full_blocks(token_ids.tobytes(), block_size):
        parent = digest_of(parent + block)
        digests.append(parent)
    return digests


def full_blocks(tokens: bytes, block_size: int, start: int = 0) -> Iterator[bytes]:
    """Yields the bytes of each full block of int32 tokens, beginning with block `start`."""
    block_bytes = 4 * block_size
    end = len(tokens) // block_bytes * block_bytes
    # Faster than a slice for each.
    return map(
        itemgetter(0), struct.iter_unpack(f"{block_bytes}s", tokens[start * block_bytes : end])
    )


def low_64_bits(digest: bytes) -> int:
    """Returns the form of the digest on the wire, from 0 to 2^64 - 1."""
    return int.from_bytes(digest[8:], "big")


def low_64_bits_of_all(digests: Sequence[bytes]) -> "array[int]":
    """Returns `low_64_bits` of each digest, typecode "Q", in a fraction of the time."""
    low = array("Q", b"".join(digests))[1::2]
    if sys.byteorder == "little":
        low.byteswap()
    return low
