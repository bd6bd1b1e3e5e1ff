"""Exercise 7: preempt whom it costs least.

The youngest request is not always the cheapest to compute again: it may have the longest prompt.
But if the cheapest were always taken, an unlucky request could be preempted for ever, and if all
were unlucky in turn, nothing would ever end. So the oldest of all is spared.
"""

from examples.guide.step_05_continuous_batching import Request
from examples.guide.step_07_preemption import PreemptingEngine


class ThriftyEngine(PreemptingEngine):
    """Preempts the request of which the fewest tokens were computed, but never the oldest."""

    def victim(self) -> Request:
        """Returns the running request whose blocks are taken.

        That is, of all but the oldest, the one with the fewest computed tokens; of several, the
        youngest. A request is older than another if it was added before, whenever it was started:
        `running` need not be in that order any more. If only one runs, it is that one.
        """
        raise NotImplementedError

    def preempt(self, request: Request) -> None:
        """Takes a request's blocks; it waits before all that were added after it.

        Here, not only the last may be preempted. So the first place in `waiting` may be wrong for
        it: older ones may wait already.
        """
        raise NotImplementedError
