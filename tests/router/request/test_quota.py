import pytest

from router.errors import QueueFull
from router.request.quota import Quota


@pytest.fixture
def quota():
    return Quota("max_things", 100, "things of requests")


def test_amounts_are_held_up_to_the_bound_and_free_again_when_given_back(quota):
    quota.take(60)
    quota.take(40)
    with pytest.raises(QueueFull):
        quota.take(1)

    quota.give_back(60)
    quota.take(60)

    assert quota.held == 100


def test_refusal_names_value_and_bound_and_says_when_to_come_back(quota):
    quota.take(60)

    with pytest.raises(QueueFull) as raised:
        quota.take(41)

    status = raised.value.status
    assert status.message == "41 more things of requests on top of 60 are 101, over max_things 100"
    assert status.metadata == {"value": "41", "held": "60", "max_things": "100"}
    assert status.retry_after == 1.0
    assert quota.held == 60


def test_amount_over_the_bound_is_held_alone_or_not_at_all(quota):
    quota.take(1)
    with pytest.raises(QueueFull):
        quota.take(101)
    quota.give_back(1)

    quota.take(101)

    with pytest.raises(QueueFull):
        quota.take(1)
