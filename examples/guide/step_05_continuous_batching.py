"""Step 5: an engine. Requests come and go at each step, and a step has a budget of tokens.

From step 4: `Sequence`, `PagedCache`. `trace.py` runs the engine and counts.
"""

from collections import deque
from dataclasses import dataclass

from examples.guide.common import END, QUESTIONS, Answers, chat, figure, text_with_facts
from examples.guide.step_01_forward import Model, load
from examples.guide.step_04_paged_kv import PagedCache, Sequence
from examples.guide.trace import Trace


@dataclass(kw_only=True, eq=False)
class Request(Sequence):
    """A sequence with an ID, and the length at which it ends if nothing ends it before."""

    request_id: int
    max_num_tokens: int

    @property
    def num_uncomputed(self) -> int:
        """Its known tokens that are not in the cache: one while it decodes, more in its prompt."""
        return len(self.token_ids) - self.num_computed


class Engine:
    """Computes all requests together, a step at a time; each list is in order of arrival."""

    def __init__(
        self, model: Model, num_blocks: int, *, block_size: int = 16, budget: int = 64
    ) -> None:
        """`num_blocks` of `block_size` tokens; a step computes at most `budget` tokens in all."""
        if min(num_blocks, block_size, budget) < 1:
            raise ValueError(f"{num_blocks=}, {block_size=} and {budget=} must be at least 1")
        self.model = model
        self.num_blocks = num_blocks
        self.budget = budget
        self.cache = PagedCache(model, num_blocks, block_size)
        self.waiting: deque[Request] = deque()  # They have no blocks yet.
        self.running: list[Request] = []
        self.computed: dict[int, int] = {}  # Request IDs, and tokens in the last step.
        self._num_added = 0

    @property
    def is_idle(self) -> bool:
        """Whether no request is left."""
        return not self.waiting and not self.running

    def add(self, prompt: list[int], max_tokens: int) -> int:
        """Adds a request and returns its ID, counted from 0; ValueError if it can never run."""
        total = len(prompt) + max_tokens
        needed = self.cache.blocks_for(total)
        if not prompt or max_tokens < 1 or needed > self.num_blocks:
            allowed = f"at least 1 each, and at most {self.num_blocks} blocks"
            raise ValueError(f"{len(prompt)=} and {max_tokens=} need {needed} blocks; {allowed}")
        request = Request(list(prompt), request_id=self._num_added, max_num_tokens=total)
        self._num_added += 1
        self.waiting.append(request)
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """Ends a request; nothing happens if it has ended already."""
        for request in [*self.running, *self.waiting]:
            if request.request_id == request_id:
                self.end(request)

    def step(self) -> list[tuple[int, int]]:
        """Computes one step; returns the ID of each request that got a token, and the token.

        The last token of a request is `END`, or the one with which its answer has `max_tokens`.
        """
        while self.waiting and len(self.running) < self.budget and self.fits(self.waiting[0]):
            self.start(self.waiting.popleft())
        rows = self.schedule()
        self.computed = {request.request_id: count for request, count in rows}
        tokens = self.cache.compute(self.model, [*rows]) if rows else []
        given = []
        for (request, _), token in zip(rows, tokens, strict=True):
            if request.num_uncomputed:
                continue  # Of its prompt more is to come: what follows this part is known.
            request.token_ids.append(token)
            given.append((request.request_id, token))
            if token == END or len(request.token_ids) == request.max_num_tokens:
                self.end(request)
        return given

    def fits(self, request: Request) -> bool:
        """Whether there are blocks for it too, even if all answers become as long as may be."""
        lengths = [other.max_num_tokens for other in [*self.running, request]]
        return sum(map(self.cache.blocks_for, lengths)) <= self.num_blocks

    def start(self, request: Request) -> None:
        """Lets a request run."""
        self.running.append(request)

    def schedule(self) -> list[tuple[Request, int]]:
        """Divides the budget: a token for each that decodes, then parts of prompts."""
        rows, left = [], self.budget
        for request in sorted(self.running, key=lambda request: request.num_uncomputed > 1):
            count = min(left, request.num_uncomputed)
            if count:
                self.cache.grow(request, request.num_computed + count)
                rows.append((request, count))
                left -= count
        return rows

    def end(self, request: Request) -> None:
        """Forgets a request and takes back its blocks."""
        (self.running if request in self.running else self.waiting).remove(request)
        self.cache.release(request)


def with_long_prompt(model: Model, budget: int) -> Trace:
    """Lets a long prompt arrive while three questions are being answered."""
    trace = Trace(Engine(model, num_blocks=64, budget=budget))
    for question in QUESTIONS[:3]:
        trace.add(chat(question), max_tokens=28)
    for _ in range(8):
        trace.step()
    trace.add(chat(f"{text_with_facts(24)}\n\nWhat is Mara's code?"))
    trace.run()
    return trace


def main() -> Answers:
    """Answers questions that come and go; then shows what a long prompt does to the others."""
    model = load()
    trace = Trace(Engine(model, num_blocks=46))
    for question in QUESTIONS * 2:
        trace.add(chat(question))
    trace.run()
    figure("16 questions: passes in batches of 8", 2 * max(map(len, trace.answers)))
    figure("steps of the engine", len(trace.computed))
    figure("tokens computed", trace.num_computed)
    for budget in (512, 128, 32):
        long = with_long_prompt(model, budget)
        print(f"\nbudget {budget}: ▒ prompt, █ token; a column is 8 tokens computed")
        long.draw(["introduce", "primes", "count", "long"], 8, slice(5, 24))
        gap = max(tokens for _, tokens in long.waits(2)[1:])
        steps, tokens = long.waits(3)[0]
        figure("between two tokens of 'count', at most", f"{gap} tokens computed")
        figure("up to the long prompt's first token", f"{tokens} tokens computed, steps: {steps}")
    return long.answers_by_prompt() | trace.answers_by_prompt()


if __name__ == "__main__":
    main()
