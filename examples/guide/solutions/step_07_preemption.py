"""Solution of exercise 7."""

from collections import deque

from examples.guide.step_05_continuous_batching import Request
from examples.guide.step_07_preemption import PreemptingEngine


class ThriftyEngine(PreemptingEngine):
    """Preempts the request of which the fewest tokens were computed, but never the oldest."""

    def victim(self) -> Request:
        """Returns the running request whose blocks are taken."""
        by_age = sorted(self.running, key=lambda request: request.request_id)
        return min(by_age[1:] or by_age, key=lambda other: (other.num_computed, -other.request_id))

    def preempt(self, request: Request) -> None:
        """Takes a request's blocks; it waits before all that were added after it."""
        super().preempt(request)
        self.waiting = deque(sorted(self.waiting, key=lambda request: request.request_id))
