"""Solution of exercise 6."""

import struct

from xxhash import xxh3_128_digest


def salted_digests(token_ids: list[int], block_size: int, model: str, salt: str) -> list[bytes]:
    """Returns the digest of each full block: 16 bytes, the same on every machine."""
    # The length says where the model's name ends. All first blocks have this root as parent.
    name = model.encode()
    parent = xxh3_128_digest(struct.pack("<Q", len(name)) + name + salt.encode())
    digests = []
    for end in range(block_size, len(token_ids) + 1, block_size):
        block = struct.pack(f"<{block_size}i", *token_ids[end - block_size : end])
        parent = xxh3_128_digest(parent + block)
        digests.append(parent)
    return digests
