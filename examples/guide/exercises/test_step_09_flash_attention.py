from types import ModuleType

import pytest
import torch

from examples.guide.step_09_flash_attention import LargestTensor

TILE = 16


@pytest.mark.parametrize("window", [1, 5, 16, 17, 200])
@pytest.mark.parametrize(("num_new", "num_all"), [(100, 100), (1, 70), (37, 90), (16, 64)])
def test_equals_attention_with_a_mask(
    exercise: ModuleType, window: int, num_new: int, num_all: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 2, num_all, 8, generator=generator)
    # Scores of some hundreds: their powers fit into a number only relative to the largest.
    queries = 100 * torch.randn(2, num_new, 8, generator=generator)
    places = torch.arange(num_all)
    rows = places[num_all - num_new :, None]
    mask = (places <= rows) & (places > rows - window)
    scores = (queries @ keys.mT / 8**0.5).masked_fill(~mask, float("-inf"))

    result = exercise.window_attention(queries, keys, values, window, TILE)

    torch.testing.assert_close(result, scores.softmax(-1) @ values, atol=1e-4, rtol=1e-4)


def test_reads_no_tile_that_nobody_sees(exercise: ModuleType) -> None:
    keys, values = torch.ones(2, 1, 5 * TILE, 8)
    # The first new token is number 3 * TILE + 8, and sees back to 2 * TILE + 9.
    for part in (keys, values):
        part[:, : 2 * TILE] = float("nan")
    queries = torch.ones(1, 2 * TILE - 8, 8)
    result = exercise.window_attention(queries, keys, values, TILE, TILE)
    torch.testing.assert_close(result, torch.ones_like(queries))


def test_holds_no_more_than_a_tile_of_scores(exercise: ModuleType) -> None:
    text = torch.ones(3, 1, 20 * TILE, 8)
    with LargestTensor() as seen:
        exercise.window_attention(*text, 20 * TILE, TILE)
    assert seen.num_bytes <= text[0].nbytes
