"""Golden vectors of the block hash: engines and routers of all releases must agree on them."""

import struct
from array import array

import pytest
import xxhash

from protos.wire.block_hash import (
    DIGEST_SIZE,
    SCHEME,
    block_digests,
    low_64_bits,
    low_64_bits_of_all,
    root_digest,
)

FINGERPRINT = "qwen3-0.6b@1"

ROOTS = {
    ("", "", ""): "bd0eb1b94bbf4c514f436c54635097f3",
    ("m", "", ""): "370a7972d6bb9f9f276742956a3dd21b",
    (FINGERPRINT, "", ""): "3f9e4e7c616ec08d9b4e61bf0ad3a371",
    (FINGERPRINT, "", "tenant-a"): "331dfb3ed1d3d9aefe74ca9d3ee6689c",
    (FINGERPRINT, "lora-1", ""): "f8c520456375fafb74b227853952cf12",
}

BLOCKS = [
    (range(8), 4, ["1a0494dc55deab9ce1479d4c56e5da52", "969a7683249718da773ed5673e069667"]),
    (
        [0, -1, 2**31 - 1, -(2**31)],
        2,
        ["a752fc9cb3e7d10e7732479d610ba441", "b458a38c46dbb397e939294a8cfe1ce9"],
    ),
    (range(151_920, 151_936), 16, ["370486450f54897dc49aaf9cc3e61dde"]),
]


def digests_by_the_book(root, token_ids, block_size):
    """The scheme in the words of its definition, without our code."""
    digests = []
    parent = root
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        block = struct.pack(f"<{block_size}i", *token_ids[start : start + block_size])
        parent = xxhash.xxh3_128(parent + block).digest()
        digests.append(parent)
    return digests


def test_scheme_has_the_name_that_these_vectors_belong_to():
    assert SCHEME == "xxh3-128-chain-int32le-v1"


@pytest.mark.parametrize("parts", ROOTS)
def test_root_is_the_golden_one(parts):
    fingerprint, adapter, cache_salt = parts

    assert root_digest(fingerprint, adapter, cache_salt).hex() == ROOTS[parts]


@pytest.mark.parametrize(("token_ids", "block_size", "golden"), BLOCKS)
def test_digests_are_the_golden_ones(token_ids, block_size, golden):
    digests = block_digests(root_digest(FINGERPRINT), array("i", token_ids), block_size)

    assert [digest.hex() for digest in digests] == golden


@pytest.mark.parametrize("num_tokens", [0, 1, 15, 16, 17, 32, 100])
@pytest.mark.parametrize("block_size", [1, 16, 256])
def test_digests_follow_the_definition(num_tokens, block_size):
    token_ids = [7 * index for index in range(num_tokens)]
    root = root_digest(FINGERPRINT)

    digests = block_digests(root, array("i", token_ids), block_size)

    assert digests == digests_by_the_book(root, token_ids, block_size)
    assert all(len(digest) == DIGEST_SIZE for digest in digests)


def test_chain_may_be_computed_in_pieces():
    token_ids = array("i", range(64))
    root = root_digest(FINGERPRINT)

    first = block_digests(root, token_ids[:32], 16)
    rest = block_digests(first[-1], token_ids[32:], 16)

    assert first + rest == block_digests(root, token_ids, 16)


def test_low_64_bits_are_the_last_eight_bytes_big_endian():
    digest = bytes.fromhex("1a0494dc55deab9ce1479d4c56e5da52")

    assert low_64_bits(digest) == 0xE1479D4C56E5DA52


def test_low_64_bits_of_all_digests_are_those_of_each():
    digests = block_digests(root_digest(FINGERPRINT), array("i", range(64)), 16)

    assert low_64_bits_of_all(digests) == array("Q", [low_64_bits(digest) for digest in digests])
    assert low_64_bits_of_all([]) == array("Q")


def test_neighbouring_root_parts_are_kept_apart():
    assert root_digest("m", "ab", "c") != root_digest("m", "a", "bc")


def test_a_wrong_typecode_is_refused_by_name():
    with pytest.raises(TypeError, match='typecode "i", not "q"'):
        block_digests(root_digest(FINGERPRINT), array("q", [1, 2]), 2)
