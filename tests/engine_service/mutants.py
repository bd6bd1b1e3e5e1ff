"""Faults that parity tests must notice."""

import pytest
import torch

import engine_service.layers.attention as attention_module


def shift_one_kv_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores the keys and values of each token one slot behind its own, within its block."""
    store = attention_module.qk_norm_rope_store

    def store_shifted(*arguments: object) -> torch.Tensor:
        *before, slot_mapping, kv_cache, num_heads = arguments
        assert isinstance(slot_mapping, torch.Tensor)
        assert isinstance(kv_cache, torch.Tensor)
        block_size = kv_cache.shape[3]
        offsets = slot_mapping % block_size
        shifted = slot_mapping - offsets + (offsets + 1) % block_size
        return store(*before, shifted, kv_cache, num_heads)

    monkeypatch.setattr(attention_module, "qk_norm_rope_store", store_shifted)
