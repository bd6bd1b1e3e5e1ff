"""Faults that parity tests must notice."""

import pytest
import torch

import engine_service.layers.attention as attention_module


def shift_one_kv_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores the keys and values of each token in the slot behind its own.

    Across blocks: within one, a trained model hardly minds, for keys carry their positions.
    """
    store = attention_module.qk_norm_rope_store
    seen = set()

    def store_shifted(*arguments: object) -> torch.Tensor:
        *before, slot_mapping, kv_cache, num_heads = arguments
        assert isinstance(slot_mapping, torch.Tensor)
        assert isinstance(kv_cache, torch.Tensor)
        # What was never written may be NaN, which is an error and not another token.
        if kv_cache.data_ptr() not in seen:
            seen.add(kv_cache.data_ptr())
            kv_cache.zero_()
        num_slots = kv_cache.shape[1] * kv_cache.shape[3]
        # A slot of -1 is skipped, and stays so.
        shifted = torch.where(slot_mapping < 0, slot_mapping, (slot_mapping + 1) % num_slots)
        return store(*before, shifted, kv_cache, num_heads)

    monkeypatch.setattr(attention_module, "qk_norm_rope_store", store_shifted)
