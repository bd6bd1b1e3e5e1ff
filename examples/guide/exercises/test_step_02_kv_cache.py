from types import ModuleType

from examples.guide.step_01_forward import load

WEIGHTS = 5_689_536
NUMBERS_PER_TOKEN = 2 * 7 * 4 * 32


def test_memory_left_by_the_weights_is_divided_by_what_a_token_takes(exercise: ModuleType) -> None:
    model = load()
    for size in (2, 4):
        memory = size * (WEIGHTS + 1000 * NUMBERS_PER_TOKEN)
        assert exercise.max_tokens(model, memory, size) == 1000
        assert exercise.max_tokens(model, memory - 1, size) == 999
        assert exercise.max_tokens(model, size * WEIGHTS, size) == 0
        assert exercise.max_tokens(model, 1, size) == 0
