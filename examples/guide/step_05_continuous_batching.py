"""Step 5: an engine. Requests come and go at any step; each step computes a bounded number of tokens.

From step 4: `Sequence`, `PagedCache`.
"""

from collections import deque
from dataclasses import dataclass

from examples.guide.common import END
from examples.guide.step_01_forward import Model
from examples.guide.step_04_paged_kv import PagedCache, Sequence


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
    """Computes all requests together, a step at a time.

    Attributes:
        waiting: Requests that have no blocks yet, in order of arrival.
        running: Those that have some, in order of arrival.
        computed: How many tokens of which request the last step computed.
    """

    def __init__(
        self, model: Model, num_blocks: int, *, block_size: int = 16, budget: int = 64
    ) -> None:
        """Creates an engine without requests.

        Args:
            model: The model.
            num_blocks: Blocks of the KV cache.
            block_size: Tokens of a block.
            budget: The most tokens that a step computes, of all requests together.
        """
        if min(num_blocks, block_size, budget) < 1:
            raise ValueError(f"{num_blocks=}, {block_size=} and {budget=} must be at least 1")
        self.model = model
        self.num_blocks = num_blocks
        self.budget = budget
        self.cache = PagedCache(model, num_blocks, block_size)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.computed: dict[int, int] = {}
        self._num_added = 0

    @property
    def is_idle(self) -> bool:
        """Whether no request is left."""
        return not self.waiting and not self.running

    def add(self, prompt: list[int], max_tokens: int) -> int:
        """Adds a request and returns its ID; the IDs count from 0.

        Raises:
            ValueError: The prompt is empty, `max_tokens` is below 1, or the cache could not hold
                the prompt with its longest answer.
        """
        if not prompt or max_tokens < 1:
            raise ValueError(f"{len(prompt)=} and {max_tokens=} must be at least 1")
        request = Request(
            token_ids=list(prompt),
            request_id=self._num_added,
            max_num_tokens=len(prompt) + max_tokens,
        )
        if self.cache.blocks_for(request.max_num_tokens) > self.num_blocks:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {max_tokens=} need "
                f"{self.cache.blocks_for(request.max_num_tokens)} blocks of {self.num_blocks}"
            )
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
                continue  # Of its prompt more is to come, so the token behind this part is known.
            request.token_ids.append(token)
            given.append((request.request_id, token))
            if token == END or len(request.token_ids) == request.max_num_tokens:
                self.end(request)
        return given

    def fits(self, request: Request) -> bool:
        """Whether the cache holds this request too, even if all answers become as long as may be."""
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
