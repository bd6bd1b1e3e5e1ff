from types import ModuleType


def test_a_request_without_tokens_may_lose_one_engine(exercise: ModuleType) -> None:
    losses = exercise.Losses()

    assert losses.may_go_on(0)
    assert not losses.may_go_on(0)


def test_a_first_loss_is_forgiven_after_any_number_of_tokens(exercise: ModuleType) -> None:
    for num_tokens in (0, 1, 100):
        assert exercise.Losses().may_go_on(num_tokens)


def test_tokens_of_an_earlier_engine_do_not_excuse_the_next(exercise: ModuleType) -> None:
    losses = exercise.Losses()

    assert losses.may_go_on(12)
    assert not losses.may_go_on(12)


def test_a_request_that_gets_on_may_lose_any_number_of_engines(exercise: ModuleType) -> None:
    losses = exercise.Losses()

    assert losses.may_go_on(0)
    assert all(losses.may_go_on(num_tokens) for num_tokens in (1, 2, 40, 41))
    assert not losses.may_go_on(41)


def test_requests_do_not_pay_for_each_other(exercise: ModuleType) -> None:
    first, second = exercise.Losses(), exercise.Losses()

    assert first.may_go_on(3)
    assert second.may_go_on(3)
