from types import ModuleType

import pytest
import torch

from examples.guide.step_01_forward import attention

Shape = tuple[int, int, int, int]


@pytest.mark.parametrize("shape", [(5, 5, 8, 4), (1, 9, 6, 1), (3, 7, 4, 4)])
def test_equals_attention_with_repeated_keys(exercise: ModuleType, shape: Shape) -> None:
    num_new, num_all, num_heads, num_kv_heads = shape
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(num_new, num_heads, 16, generator=generator)
    keys, values = torch.randn(2, num_all, num_kv_heads, 16, generator=generator)
    mask = torch.arange(num_all) <= torch.arange(num_all - num_new, num_all)[:, None]

    result = exercise.grouped_attention(queries, keys, values, mask)

    torch.testing.assert_close(result, attention(queries, keys, values, mask))


def test_copies_no_key(exercise: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("keys or values are repeated")

    for name in ("repeat_interleave", "repeat", "tile"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "repeat_interleave", refuse)
    part = torch.ones(2, 2, 4)
    exercise.grouped_attention(torch.ones(2, 4, 4), part, part, torch.ones(2, 2, dtype=torch.bool))
