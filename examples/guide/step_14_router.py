"""Step 14: a router gives each request to one of several engines, and to another if that one dies.

From step 6: `CachingEngine`. `placement.py` simulates which engine should get which request.
"""

from dataclasses import dataclass, field

from examples.guide.common import END, QUESTIONS, Answers, chat, figure, text_of
from examples.guide.placement import compare_policies
from examples.guide.step_01_forward import Model, load
from examples.guide.step_06_prefix_caching import CachingEngine


class EngineLost(Exception):
    """An engine has ended; what it had not given yet is lost."""


class MortalEngine(CachingEngine):
    """An engine that ends in a step: it computes the tokens, and they reach nobody."""

    def __init__(self, model: Model, num_blocks: int, num_steps: int) -> None:
        super().__init__(model, num_blocks)
        self.num_steps = num_steps

    def step(self) -> list[tuple[int, int]]:
        """Computes a step; after `num_steps` of them raises EngineLost."""
        tokens = super().step()
        self.num_steps -= 1
        if self.num_steps < 0:
            raise EngineLost
        return tokens


@dataclass
class Stream:
    """A request as the router knows it: all that another engine needs to go on.

    Attributes:
        answer: The tokens that the client has been sent.
        engine: The number of the engine that computes it now.
        request_id: What that engine calls it.
        num_sent: How many tokens were sent to engines for it, in all.
        timeline: For each step a letter, if a token came: which engine gave it.
    """

    prompt: list[int]
    max_tokens: int
    answer: list[int] = field(default_factory=list)
    engine: int = 0
    request_id: int = 0
    num_sent: int = 0
    timeline: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the answer has ended."""
        return len(self.answer) == self.max_tokens or self.answer[-1:] == [END]


class Router:
    """Stands between clients and engines.

    Attributes:
        engines: Those that live, by number.
        streams: All requests.
    """

    def __init__(self, engines: list[CachingEngine]) -> None:
        self.engines = dict(enumerate(engines))
        self.streams: list[Stream] = []

    def add(self, prompt: list[int], max_tokens: int) -> Stream:
        """Takes a request."""
        stream = Stream(prompt, max_tokens)
        self.streams.append(stream)
        self.place(stream)
        return stream

    def place(self, stream: Stream) -> None:
        """Gives a request to the engine where it costs least, with all tokens that it has."""
        if not self.engines:
            raise EngineLost("no engine is left")
        known, left = stream.prompt + stream.answer, stream.max_tokens - len(stream.answer)
        stream.engine = min(self.engines, key=lambda number: cost(self.engines[number], known))
        stream.request_id = self.engines[stream.engine].add(known, left)
        stream.num_sent += len(known)

    def step(self) -> None:
        """Lets each engine make a step, and passes on the tokens."""
        lost, tokens = set[int](), dict[tuple[int, int], int]()
        for number, engine in self.engines.items():
            try:
                tokens |= {(number, request): token for request, token in engine.step()}
            except EngineLost:
                lost.add(number)
        for stream in self.streams:
            token = tokens.get((stream.engine, stream.request_id))
            stream.timeline += "·" if token is None else "AB"[stream.engine]
            stream.answer += [] if token is None else [token]
        self.engines = {n: engine for n, engine in self.engines.items() if n not in lost}
        for stream in self.streams:
            if stream.engine in lost and not stream.is_finished:
                self.place(stream)


def cost(engine: CachingEngine, known: list[int]) -> int:
    """Returns what an engine computes before the next token: what is queued, and is not cached."""
    queued = sum(request.num_uncomputed for request in [*engine.waiting, *engine.running])
    digests = [digest for digest, _ in engine.cache.chain(known)]
    is_missing = [digest not in engine.cache.entries for digest in digests]
    num_cached = (*is_missing, True).index(True) * engine.cache.block_size
    return queued + len(known) - num_cached


def answer_all(engines: list[CachingEngine], prompts: list[list[int]]) -> list[Stream]:
    """Sends requests to engines through a router, and waits for all answers."""
    router = Router(engines)
    streams = [router.add(prompt, 64) for prompt in prompts]
    while not all(stream.is_finished for stream in streams):
        router.step()
    return streams


def main() -> Answers:
    """Compares placements; then kills an engine in the middle of answers."""
    compare_policies()
    model, prompts = load(), [chat(QUESTIONS[i]) for i in (0, 2, 4, 7)]
    engines = [MortalEngine(model, 32, num_steps=12), CachingEngine(model, 32)]
    streams = answer_all(engines, prompts)
    print("\nwhich engine gave which token; A ends in step 13:")
    for stream in streams:
        print(f"{stream.timeline.rstrip('·'):<52} {text_of(stream.answer)[:40]}")
    moved = [stream for stream in streams if "A" in stream.timeline and "B" in stream.timeline]
    figure("answers that moved to B", len(moved))
    figure("their tokens from A", sum(stream.timeline.count("A") for stream in moved))
    figure("their tokens that B computes again", sum(s.num_sent - len(s.prompt) for s in moved))
    undisturbed = [stream.answer for stream in answer_all([CachingEngine(model, 32)], prompts)]
    figure("equal to the answers of one engine", undisturbed == [s.answer for s in streams])
    return {tuple(stream.prompt): stream.answer for stream in streams}


if __name__ == "__main__":
    main()
