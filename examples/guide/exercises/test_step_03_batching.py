from types import ModuleType

import torch

from examples.guide.common import QUESTIONS, chat
from examples.guide.step_01_forward import attend_to_these, attention, forward, load

PROMPTS = [[5, 6, 7], [8], [9, 10]]


def test_tokens_stand_at_the_right(exercise: ModuleType) -> None:
    tokens, _, _ = exercise.left_padded(PROMPTS, 1)

    assert tokens.tolist() == [[5, 6, 7], [1, 1, 8], [1, 9, 10]]


def test_positions_count_from_the_first_real_token(exercise: ModuleType) -> None:
    _, positions, _ = exercise.left_padded(PROMPTS, 1)

    assert positions.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]


def test_mask_hides_padding_and_what_comes_later(exercise: ModuleType) -> None:
    _, _, mask = exercise.left_padded(PROMPTS, 1)

    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
    ]


def test_rows_are_computed_as_if_alone(exercise: ModuleType) -> None:
    model = load()
    prompts = [chat(question) for question in QUESTIONS[:3]]
    tokens, positions, mask = exercise.left_padded(prompts, 3)

    def attend(
        _: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        split = (part.unflatten(0, tokens.shape) for part in (queries, keys, values))
        return torch.cat([attention(*row) for row in zip(*split, mask, strict=True)])

    hidden = forward(model, tokens.flatten(), positions.flatten(), attend)

    last = hidden.unflatten(0, tokens.shape)[:, -1]
    for prompt, found in zip(prompts, last, strict=True):
        alone = forward(model, torch.tensor(prompt), torch.arange(len(prompt)), attend_to_these)
        torch.testing.assert_close(found, alone[-1], rtol=1e-3, atol=1e-3)
