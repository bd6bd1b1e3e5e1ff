import multiprocessing
from typing import ClassVar

import pytest

from engine_service.core import inbox as inbox_module
from engine_service.core.inbox import Inbox, ServerGone
from engine_service.core.types import CoreInput
from engine_service.errors import InvalidRequest
from tests.engine_service.core.helpers import make_request


class Recipient:
    def __init__(self):
        self.taken = []
        self.cancelled = []
        self.describes_blocks = None

    def add(self, request):
        if not request.prompt_token_ids:
            raise InvalidRequest("no tokens")
        self.taken.append(request.request_id)

    def cancel(self, request_id):
        self.cancelled.append(request_id)

    def describe_blocks(self, is_wanted):
        self.describes_blocks = is_wanted


@pytest.fixture
def pipe():
    ours, theirs = multiprocessing.Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def no_time(monkeypatch):
    """A deadline that has passed as soon as it is looked at."""
    monkeypatch.setattr(inbox_module, "_SECONDS", -1.0)


@pytest.fixture
def much_time(monkeypatch):
    """However long the machine stands still."""
    monkeypatch.setattr(inbox_module, "_SECONDS", 60.0)


def requests(*request_ids):
    return CoreInput(requests=[make_request(request_id, [1]) for request_id in request_ids])


@pytest.mark.usefixtures("much_time")
def test_all_that_has_come_is_passed_on_in_order(pipe):
    ours, theirs = pipe
    ours.send(requests(1, 2))
    ours.send(requests(3))
    recipient = Recipient()

    assert Inbox(theirs).deliver(recipient, must_wait=True) == []

    assert recipient.taken == [1, 2, 3]


@pytest.mark.usefixtures("no_time")
def test_burst_is_taken_over_many_steps_and_nothing_is_lost(pipe):
    ours, theirs = pipe
    ours.send(requests(*range(50)))
    ours.send(requests(*range(50, 100)))
    recipient, inbox = Recipient(), Inbox(theirs)

    taken, left = [], []
    while len(recipient.taken) < 100:
        # It must not wait for more while something is left.
        inbox.deliver(recipient, must_wait=True)
        taken.append(len(recipient.taken))
        left.append((len(inbox), inbox.num_tokens))

    assert taken == list(range(1, 101))
    # Each has one token; the second message is read when the first is through, or before.
    assert all(count == num_tokens for count, num_tokens in left)
    assert left[-1] == (0, 0)
    assert max(count for count, _ in left) >= 49
    assert recipient.taken == list(range(100))


@pytest.mark.usefixtures("no_time")
def test_cancellation_overtakes_requests_that_wait(pipe):
    ours, theirs = pipe
    recipient, inbox = Recipient(), Inbox(theirs)
    ours.send(requests(1, 2, 3))
    inbox.deliver(recipient, must_wait=True)
    ours.send(CoreInput(cancelled_ids=[1, 3, 7]))

    inbox.deliver(recipient, must_wait=False)
    inbox.deliver(recipient, must_wait=False)

    # 3 had not been taken yet.
    assert recipient.taken == [1, 2]
    assert recipient.cancelled == [1, 7]


@pytest.mark.usefixtures("much_time")
def test_wish_to_know_of_blocks_is_passed_on(pipe):
    ours, theirs = pipe
    recipient = Recipient()
    for wish, known in ((True, True), (None, True), (False, False)):
        ours.send(CoreInput(describes_blocks=wish))
        Inbox(theirs).deliver(recipient, must_wait=True)
        assert recipient.describes_blocks is known


@pytest.mark.usefixtures("much_time")
def test_refused_requests_are_told_and_others_go_on(pipe):
    ours, theirs = pipe
    ours.send(CoreInput(requests=[make_request(1, []), make_request(2, [5])]))
    recipient = Recipient()

    (failure,) = Inbox(theirs).deliver(recipient, must_wait=True)

    assert failure.request_id == 1
    assert recipient.taken == [2]


def test_waiting_ends_within_a_second_so_that_the_loop_can_say_that_it_lives():
    class SilentConnection:
        timeouts: ClassVar = []

        def poll(self, timeout=0.0):
            self.timeouts.append(timeout)
            return False

    recipient = Recipient()

    assert Inbox(SilentConnection()).deliver(recipient, must_wait=True) == []

    assert recipient.taken == recipient.cancelled == []
    # One wait, and a long one: an idle core must not burn its processor.
    (timeout,) = SilentConnection.timeouts
    assert 0.1 <= timeout <= 1.0


def test_end_of_the_connection_is_told(pipe):
    ours, theirs = pipe
    ours.close()

    with pytest.raises(ServerGone):
        Inbox(theirs).deliver(Recipient(), must_wait=True)
