"""Step 7: no promise of blocks. When none is left, the youngest request gives its blocks back.

From step 5: `Engine`. From step 6: `CachingEngine`.
"""

from statistics import mean

from examples.guide.common import QUESTIONS, Answers, chat, figure
from examples.guide.step_01_forward import load
from examples.guide.step_05_continuous_batching import Engine, Request
from examples.guide.step_06_prefix_caching import CachingEngine
from examples.guide.trace import Trace


class PreemptingEngine(Engine):
    """Gives blocks to what is known of a request, not to what may come."""

    num_preempted = 0

    def fits(self, request: Request) -> bool:
        """Whether there are blocks for its known tokens, and one more for each that runs."""
        needed = self.cache.blocks_for(len(request.token_ids))
        return needed + len(self.running) <= len(self.cache.free)

    def start(self, request: Request) -> None:
        """Lets a request run; it gets the blocks for all its known tokens at once."""
        super().start(request)
        self.cache.grow(request, len(request.token_ids))

    def schedule(self) -> list[tuple[Request, int]]:
        """Gives blocks to those that lack one, the oldest first; then divides the budget."""
        for request in tuple(self.running):
            while request in self.running and self.lacks(request) > len(self.cache.free):
                self.preempt(self.victim())
            if request in self.running:
                self.cache.grow(request, len(request.token_ids))
        return super().schedule()

    def lacks(self, request: Request) -> int:
        """How many more blocks its known tokens need."""
        return self.cache.blocks_for(len(request.token_ids)) - len(request.block_table)

    def victim(self) -> Request:
        """Who gives its blocks back: the one that came last, even if it is the one that asks."""
        return self.running[-1]

    def preempt(self, request: Request) -> None:
        """Takes a request's blocks; it waits, before all others, and keeps its tokens."""
        self.running.remove(request)
        self.cache.release(request)
        self.waiting.appendleft(request)
        self.num_preempted += 1


class FindingEngine(PreemptingEngine, CachingEngine):
    """What was preempted finds its own blocks again, as far as nobody has used them meanwhile."""


def main() -> Answers:
    """Answers six questions with ten blocks, in three ways."""
    model = load()
    traces = {}
    for name, kind in (
        ("a promise of blocks for the longest answer", Engine),
        ("no promise, preemption", PreemptingEngine),
        ("preemption and prefix caching", FindingEngine),
    ):
        trace = traces[kind] = Trace(kind(model, num_blocks=10))
        for question in QUESTIONS[:3] * 2:
            trace.add(chat(question))
        trace.run()
        print(f"{name}:")
        figure("  steps", len(trace.computed))
        figure("  requests in a step, on average", f"{mean(map(len, trace.computed)):.1f}")
        needed = sum(len(p) + len(a) - 1 for p, a in zip(trace.prompts, trace.answers, strict=True))
        figure("  tokens computed again", trace.num_computed - needed)
    figure("equal answers", all(t.answers == trace.answers for t in traces.values()))

    print("\nwith preemption, a column a step: ▒ prompt or computed again, █ token, · waiting")
    names = ["introduce", "primes", "count"]
    traces[PreemptingEngine].draw(names * 2, trace.num_computed, slice(None))
    return trace.answers_by_prompt()


if __name__ == "__main__":
    main()
