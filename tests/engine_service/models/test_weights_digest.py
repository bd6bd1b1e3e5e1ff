"""Digests of weights that are divided among ranks."""

from functools import partial

import pytest
import torch

from engine_service.layers.weight_slot import WeightSlot, merged_slots
from engine_service.models import weights_digest
from engine_service.models.tensor_part import part_of
from tests.engine_service.models.ranks import (
    DIMS,
    DTYPES,
    NUM_RANKS,
    Rank,
    digest_of,
    load_all,
    make_rank,
    make_tensors,
    write,
)


@pytest.fixture
def save(tmp_path):
    """Writes tensors as a new checkpoint."""
    return partial(write, tmp_path)


@pytest.mark.parametrize("chunk", [1, 16, 1 << 18])
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_digest_is_the_same_for_any_number_of_ranks(save, monkeypatch, stored, chunk):
    monkeypatch.setattr(weights_digest, "_CPU_CHUNK", chunk)
    tensors = make_tensors()
    checkpoint = save(tensors, stored)

    for dtype in DTYPES:
        assert len({digest_of(checkpoint, tensors, n, dtype) for n in NUM_RANKS}) == 1


def test_digest_of_ranks_that_are_not_divided_counts_each_tensor_once(save):
    tensors = make_tensors()
    checkpoint = save(tensors)
    ranks = [
        Rank([WeightSlot(name=name, parameter=torch.empty_like(t)) for name, t in tensors.items()])
        for _ in range(3)
    ]

    assert set(load_all(ranks, checkpoint)) == {digest_of(checkpoint, tensors)}


def change_value(tensors):
    tensors["columns"][4, 11] *= 1.02


def change_sign(tensors):
    tensors["columns"][8, 22] *= -1


def swap_values(tensors):
    row = tensors["columns"][3]
    row[[2, 17]] = row[[17, 2]]


def swap_rows(tensors):
    tensors["rows"][[1, 11]] = tensors["rows"][[11, 1]]


def swap_columns(tensors):
    tensors["columns"][:, [0, 22]] = tensors["columns"][:, [22, 0]]


def swap_values_of_a_vector(tensors):
    tensors["norm"][[0, 6]] = tensors["norm"][[6, 0]]


def move_value_within_the_rows(tensors):
    tensors["whole"][0, 1], tensors["whole"][1, 0] = (
        tensors["whole"][1, 0].clone(),
        tensors["whole"][0, 1].clone(),
    )


def move_heads(tensors):
    tensors["heads"][:] = tensors["heads"].roll(3, 0)


def double_and_halve(tensors):
    tensors["rows"][0, 0] *= 2
    tensors["rows"][0, 1] /= 2


def change_all_signs(tensors):
    tensors["rows"].neg_()


@pytest.mark.parametrize(
    "corrupt",
    [
        *(change_value, change_sign, swap_values, swap_rows, swap_columns),
        *(swap_values_of_a_vector, move_value_within_the_rows, move_heads, double_and_halve),
        change_all_signs,
    ],
    ids=lambda corrupt: corrupt.__name__,
)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_digest_tells_every_corruption(save, stored, corrupt):
    tensors, corrupted = make_tensors(), make_tensors()
    corrupt(corrupted)
    good, bad = save(tensors, stored), save(corrupted, stored)

    for num_ranks in (1, 3):
        assert digest_of(good, tensors, num_ranks) != digest_of(bad, tensors, num_ranks)


def test_digest_tells_tensors_that_changed_places(save, monkeypatch):
    monkeypatch.setitem(DIMS, "twin", 1)
    tensors = make_tensors() | {"twin": make_tensors(1)["columns"]}
    swapped = tensors | {"twin": tensors["columns"], "columns": tensors["twin"]}

    assert digest_of(save(tensors), tensors, 2) != digest_of(save(swapped), tensors, 2)


def test_digest_tells_any_change_of_a_single_bit(save):
    """The keys are odd, so no change of one value is a multiple of 2^64."""
    tensors = {"whole": make_tensors()["whole"]}
    digests = {digest_of(save(tensors), tensors)}
    for bit in range(23):
        changed = tensors["whole"].clone()
        changed.view(torch.int32)[2, 3] ^= 1 << bit
        digests.add(digest_of(save({"whole": changed}), tensors))

    assert len(digests) == 24


def test_digest_is_the_written_formula(save):
    """Computed with Python's integers, since other engines must have the same."""
    values = make_tensors()["columns"].bfloat16()
    (part,) = make_rank({"columns": values}, 0, 1, torch.bfloat16).slots
    padded = torch.nn.functional.pad(values, (0, 1)).view(torch.int16).tolist()
    words = [
        [low % 2**16 + high * 2**16 for low, high in zip(row[::2], row[1::2], strict=True)]
        for row in padded
    ]

    def keys(seed, count):
        for index in range(count):
            x = (index * 0x9E3779B97F4A7C15 + seed) % 2**64
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
            yield (x ^ x >> 31) | 1

    expected = [
        sum(
            row_key * column_key * word
            for row_key, row in zip(keys(row_seed, 9), words, strict=True)
            for column_key, word in zip(keys(column_seed, 12), row, strict=True)
        )
        % 2**64
        for row_seed, column_seed in (
            (0x243F6A8885A308D3, 0x299F31D0082EFA98),
            (0x13198A2E03707344, 0x452821E638D01377),
        )
    ]

    sums = weights_digest.part_sums([(values, part_of(part))])

    assert [value % 2**64 for value in sums[0].tolist()] == expected


def test_chunks_cover_a_tensor_whose_rows_are_longer_than_a_chunk(save, monkeypatch):
    monkeypatch.setattr(weights_digest, "_CPU_CHUNK", 4)
    tensors = {"columns": torch.randn(3, 100)}
    checkpoint = save(tensors)
    small = digest_of(checkpoint, tensors, 2)
    monkeypatch.setattr(weights_digest, "_CPU_CHUNK", 300)

    assert digest_of(checkpoint, tensors) == small


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_is_the_same_whatever_stands_beside_a_tensor_in_a_parameter(save, dtype):
    """Two 16-bit values are a word; here a tensor begins in the middle of one."""
    generator = torch.Generator().manual_seed(2)
    checkpoints = [
        {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        for sizes in ({"a": (3,), "b": (5,)}, {"a": (3, 7), "b": (5, 7)})
    ]
    for tensors in checkpoints:
        checkpoint = save(tensors, dtype)
        apart = [
            WeightSlot(name=n, parameter=torch.empty_like(t, dtype=dtype))
            for n, t in tensors.items()
        ]
        merged = torch.empty_like(torch.cat(list(tensors.values())), dtype=dtype)

        digests = {
            *load_all([Rank(apart)], checkpoint),
            *load_all([Rank(list(merged_slots(["a", "b"], merged, [3, 5])))], checkpoint),
        }

        assert len(digests) == 1
