import subprocess
import sys
from types import ModuleType

TOKENS = [5, 300, 70_000, 2**31 - 1, 5, 300, 70_000, 2**31 - 1, 8]


def test_there_is_a_digest_of_16_bytes_for_each_full_block(exercise: ModuleType) -> None:
    for size, count in ((2, 4), (3, 3), (4, 2), (9, 1), (10, 0)):
        digests = exercise.salted_digests(TOKENS, size, "qwen", "")

        assert [len(digest) for digest in digests] == [16] * count
        assert all(isinstance(digest, bytes) for digest in digests)


def test_equal_prefixes_have_equal_digests(exercise: ModuleType) -> None:
    first = exercise.salted_digests(TOKENS, 2, "qwen", "x")
    second = exercise.salted_digests([*TOKENS[:6], 1, 2], 2, "qwen", "x")

    assert first[:3] == second[:3]
    assert first[3] != second[3]
    assert exercise.salted_digests(TOKENS[:8], 2, "qwen", "x") == first


def test_equal_blocks_behind_different_prefixes_differ(exercise: ModuleType) -> None:
    digests = exercise.salted_digests(TOKENS, 4, "qwen", "")
    others = exercise.salted_digests([6, *TOKENS[1:]], 4, "qwen", "")

    assert len({*digests, *others}) == 4


def test_different_tokens_differ(exercise: ModuleType) -> None:
    blocks = ([1, 23], [12, 3], [3, 12], [1, 256], [256, 1], [257, 0], [0, 257], [65_536, 1])
    digests = [exercise.salted_digests(block, 2, "m", "s")[0] for block in blocks]

    assert len(set(digests)) == len(blocks)


def test_models_and_salts_never_meet(exercise: ModuleType) -> None:
    separators = (" ", ",", "|", ":", "/", "\0", "\n")
    names = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("ü", ""), ("", "ü")]
    names += [(f"a{mark}b", "c") for mark in separators]
    names += [("a", f"b{mark}c") for mark in separators]
    found = [exercise.salted_digests(TOKENS, 4, *both) for both in names]

    assert len({digest for digests in found for digest in digests}) == 2 * len(names)


def test_another_process_finds_the_same(exercise: ModuleType) -> None:
    code = f"from {exercise.__name__} import salted_digests as f; print(f({TOKENS}, 4, 'm', 's'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

    assert printed.strip() == str(exercise.salted_digests(TOKENS, 4, "m", "s"))
