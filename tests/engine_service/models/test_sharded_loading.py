"""Parts of tensors for several ranks, each of which is a thread here."""

import logging
import os
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine_service.errors import StartupError
from engine_service.layers.weight_slot import Shard, WeightSlot, merged_slots
from engine_service.models import loading, tensor_reader, weights_digest
from engine_service.models.loading import fill_randomly, load_weights
from tests.engine_service.models.ranks import (
    DTYPES,
    NUM_RANKS,
    Rank,
    load_all,
    make_rank,
    make_tensors,
    part_of,
    write,
)


@pytest.fixture
def save(tmp_path):
    """Writes tensors as a new checkpoint."""
    return partial(write, tmp_path)


@pytest.fixture(params=[28, 32 << 20], ids=["small pieces", "large pieces"])
def reads(request, monkeypatch):
    """Counts how often each byte of each file is read."""
    monkeypatch.setattr(tensor_reader, "_PIECE_BYTES", request.param)
    counts = Counter()
    preadv = os.preadv

    def count_and_read(descriptor, buffers, offset):
        num_bytes = preadv(descriptor, buffers, offset)
        inode = os.fstat(descriptor).st_ino
        counts.update((inode, offset + index) for index in range(num_bytes))
        return num_bytes

    monkeypatch.setattr(os, "preadv", count_and_read)
    return counts


@pytest.mark.parametrize("piece_bytes", [28, 100, 32 << 20])
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("num_ranks", NUM_RANKS)
def test_a_rank_holds_its_part_of_each_tensor(save, monkeypatch, num_ranks, stored, piece_bytes):
    monkeypatch.setattr(tensor_reader, "_PIECE_BYTES", piece_bytes)
    tensors = make_tensors()
    checkpoint = save(tensors, stored)

    for dtype in DTYPES:
        ranks = [make_rank(tensors, rank, num_ranks, dtype) for rank in range(num_ranks)]
        load_all(ranks, checkpoint)

        for index, rank in enumerate(ranks):
            for name, tensor in tensors.items():
                expected = part_of(name, tensor.to(stored), index, num_ranks).to(dtype)
                assert torch.equal(rank[name].target, expected), (index, name, dtype)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_ranks", NUM_RANKS)
def test_a_rank_reads_the_bytes_of_its_part_once_and_no_others(
    save, reads, caplog, num_ranks, stored
):
    caplog.set_level(logging.INFO, loading.__name__)
    tensors = make_tensors()
    checkpoint = save(tensors, stored)
    inode = os.stat(checkpoint.weights_files[0]).st_ino
    locations = checkpoint.stored_tensors()
    total = sum(tensor.numel() for tensor in tensors.values()) * stored.itemsize

    for rank in range(num_ranks):
        expected = set()
        for name, tensor in tensors.items():
            elements = torch.arange(tensor.numel()).view(tensor.shape)
            for element in part_of(name, elements, rank, num_ranks).flatten().tolist():
                first = locations[name].begin + element * stored.itemsize
                expected.update((inode, first + index) for index in range(stored.itemsize))
        reads.clear()
        caplog.clear()

        load_weights(
            make_rank(tensors, rank, num_ranks), checkpoint, rank=rank, num_ranks=num_ranks
        )

        assert reads == Counter(expected)
        line = f"weights loaded files=1 bytes={len(expected)}"
        if num_ranks > 1:
            line += f" rank={rank} num_ranks={num_ranks} total_bytes={total}"
        assert caplog.messages[-1] == line
        quarters = [message for message in caplog.messages if "percent" in message]
        assert not (rank and quarters), "one rank tells the progress"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_value_that_is_not_finite_is_told_by_the_rank_that_holds_it(save, value):
    tensors = make_tensors()
    tensors["columns"][8, 22] = value
    checkpoint = save(tensors)

    for rank in range(3):
        load_weights(make_rank(tensors, rank, 4), checkpoint, rank=rank, num_ranks=4)
    with pytest.raises(StartupError, match=r"tensor columns, stored as F32, contains"):
        load_weights(make_rank(tensors, 3, 4), checkpoint, rank=3, num_ranks=4)


def tied_ranks(embedding, num_ranks):
    name = "model.embed_tokens.weight"
    return [
        Rank([WeightSlot(name=name, parameter=slot.parameter, shard=slot.shard)])
        for rank in range(num_ranks)
        for slot in make_rank({"rows": embedding}, rank, num_ranks).slots
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("lm_head.weight",),
        ("model.embed_tokens.weight",),
        ("lm_head.weight", "model.embed_tokens.weight"),
    ],
)
def test_tied_matrix_is_divided_however_it_is_stored(save, names):
    embedding = make_tensors()["rows"]
    checkpoint = save({name: embedding.clone() for name in names})
    digests = set()

    for num_ranks in NUM_RANKS:
        ranks = tied_ranks(embedding, num_ranks)
        digests.update(load_all(ranks, checkpoint))
        assert torch.equal(torch.cat([rank.slots[0].target for rank in ranks]), embedding)

    assert len(digests) == 1


def test_tied_head_that_differs_is_told_by_the_rank_that_holds_the_row(save):
    embedding = make_tensors()["rows"]
    head = embedding.clone()
    head[12] += 1
    checkpoint = save({"model.embed_tokens.weight": embedding, "lm_head.weight": head})
    first, last = tied_ranks(embedding, 2)

    load_weights(first, checkpoint, rank=0, num_ranks=2)
    with pytest.raises(StartupError, match=r"lm_head\.weight differs from"):
        load_weights(last, checkpoint, rank=1, num_ranks=2)


def test_stored_shape_is_compared_with_that_of_the_whole_tensor(save):
    tensors = make_tensors()
    wrong = tensors | {"columns": torch.zeros(9, 22)}

    with pytest.raises(
        StartupError, match=r"columns has shape \[9, 22\], but config\.json .* \[9, 23\]"
    ):
        load_weights(make_rank(tensors, 0, 2), save(wrong), rank=0, num_ranks=2)


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_part_of_a_file_that_shrinks_while_it_is_read_is_refused(save, monkeypatch, name):
    tensors = {name: make_tensors()[name]}
    checkpoint = save(tensors)
    (path,) = checkpoint.weights_files
    end = checkpoint.stored_tensors()[name].end
    preadv = os.preadv

    def shrink_and_read(descriptor, buffers, offset):
        os.truncate(path, end - 2)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrink_and_read)

    # The bytes that are missing belong to the last rank.
    load_weights(make_rank(tensors, 0, 2), checkpoint, rank=0, num_ranks=2)
    os.truncate(path, end)
    with pytest.raises(StartupError, match=r"model\.safetensors: .*has become shorter"):
        load_weights(make_rank(tensors, 1, 2), checkpoint, rank=1, num_ranks=2)


def test_parts_of_a_file_that_is_cut_short_are_refused(save):
    tensors = make_tensors()
    checkpoint = save(tensors)
    (path,) = checkpoint.weights_files
    os.truncate(path, path.stat().st_size - 1)

    for rank in range(2):
        with pytest.raises(StartupError, match="is not a complete safetensors file"):
            load_weights(make_rank(tensors, rank, 2), checkpoint, rank=rank, num_ranks=2)


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_read_that_returns_less_is_continued(save, monkeypatch, name):
    tensors = {name: make_tensors()[name]}
    checkpoint = save(tensors)
    preadv = os.preadv
    monkeypatch.setattr(
        os,
        "preadv",
        lambda descriptor, buffers, offset: preadv(descriptor, [buffers[0][:3]], offset),
    )
    rank = make_rank(tensors, 1, 2)

    load_weights(rank, checkpoint, rank=1, num_ranks=2)

    assert torch.equal(rank[name].target, part_of(name, tensors[name], 1, 2))


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("chunk", [1, 16, 1 << 22])
def test_random_weights_are_parts_of_those_of_one_rank(monkeypatch, num_ranks, chunk):
    tensors = make_tensors()
    whole = make_rank(tensors, 0, 1)
    fill_randomly(whole, 7, 0.1)
    monkeypatch.setattr(loading, "_DUMMY_CHUNK", chunk)

    for index in range(num_ranks):
        rank = make_rank(tensors, index, num_ranks)
        fill_randomly(rank, 7, 0.1)
        for name in tensors:
            expected = part_of(name, whole[name].target, index, num_ranks)
            assert torch.equal(rank[name].target, expected), (index, name)
    assert whole["cube"].target.unique().numel() > 150


class LargestResult(TorchDispatchMode):
    """Remembers the most bytes that any operation of this thread gave."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # Views take no memory.
        if isinstance(result, torch.Tensor) and not func.is_view:
            written = any(result is arg for arg in args)
            self.num_bytes = max(self.num_bytes, 0 if written else result.nbytes)
        return result


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_memory_beside_the_weights_does_not_grow_with_them(save, monkeypatch, name):
    monkeypatch.setattr(tensor_reader, "_PIECE_BYTES", 4096)
    monkeypatch.setattr(weights_digest, "_CPU_CHUNK", 512)
    monkeypatch.setattr(loading, "_DUMMY_CHUNK", 512)
    tensors = {name: torch.randn(1000, 128)}
    checkpoint = save(tensors)
    rank = make_rank(tensors, 1, 2)
    buffers = []
    empty = torch.empty

    def count_and_allocate(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        buffers.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", count_and_allocate)

    with LargestResult() as largest:
        load_weights(rank, checkpoint, rank=1, num_ranks=2)
        fill_randomly(rank, 0, 0.1)

    assert 0 < sum(buffers) <= 8 * 4096
    # Keys for 1,000 rows, two of 8 bytes each; the part itself has 256,000 bytes.
    assert 0 < largest.num_bytes <= 1000 * 2 * 8


def test_merged_tensors_have_a_part_each():
    shards = [Shard(dim=0, begin=4, full_size=8), None]

    first, second = merged_slots(["a", "b"], torch.zeros(6, 3), [4, 2], shards)

    assert (first.shard, first.full_shape, first.target.shape) == (shards[0], (8, 3), (4, 3))
    assert (second.shard, second.full_shape) == (None, (2, 3))


@pytest.mark.parametrize(
    ("shape", "shard"),
    [
        ((4, 3), Shard(dim=0, begin=5, full_size=8)),
        ((4, 3), Shard(dim=1, begin=-1, full_size=8)),
        ((4, 3, 2), Shard(dim=2, begin=0, full_size=8)),
    ],
)
def test_part_beyond_its_tensor_is_our_error(shape, shard):
    slot = WeightSlot(name="x", parameter=torch.zeros(shape), shard=shard)

    with pytest.raises(AssertionError, match="x"):
        fill_randomly(SimpleNamespace(weight_slots=lambda: [slot]), 0, 0.1)
