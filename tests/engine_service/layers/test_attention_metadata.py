import torch

from engine_service.layers import attention
from engine_service.layers.attention import DecodeMetadata
from kernels.shared_prefix import SharedPrefixes

SEQ_LENS = torch.tensor([5, 7], dtype=torch.int32)


def test_splits_are_planned_once_for_all_layers_with_a_window(monkeypatch):
    calls = []

    def plan(*arguments):
        calls.append(arguments)
        return torch.zeros(3, 5)

    monkeypatch.setattr(attention, "split_sequences", plan)
    metadata = DecodeMetadata(seq_lens=SEQ_LENS, max_seq_len=9)

    first = metadata.splits(8, 0)

    assert metadata.splits(8, 0) is first
    assert metadata.splits(8, 100) is not first
    assert [call[1:] for call in calls] == [(9, 8, 0), (9, 8, 100)]
    assert all(call[0] is SEQ_LENS for call in calls)


def test_splits_are_not_planned_beside_shared_prefixes(monkeypatch):
    monkeypatch.delattr(attention, "split_sequences")
    shared = SharedPrefixes(tiles=SEQ_LENS, members=SEQ_LENS, prefix_lens=SEQ_LENS)

    assert DecodeMetadata(seq_lens=SEQ_LENS, max_seq_len=9, shared=shared).splits(8, 0) is None
