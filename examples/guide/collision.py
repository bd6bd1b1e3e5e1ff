"""Two questions that a short hash takes for one, and what an engine answers to them."""

from itertools import count
from typing import TYPE_CHECKING

from examples.guide.common import chat, text_of
from examples.guide.trace import Trace

if TYPE_CHECKING:
    from examples.guide.step_06_prefix_caching import CachingEngine, PrefixCache


def colliding_sums(cache: "PrefixCache") -> list[str]:
    """Returns the first two of some sums whose first blocks have equal digests."""
    found: dict[bytes, str] = {}
    for number in count():
        question = f"What is {417 + 7 * number} + {268 + 5 * number}?"
        digest, _ = next(cache.chain(chat(question)))
        if digest in found:
            break
        found[digest] = question
    return [found[digest], question]


def ask_colliding_sums(engine: "CachingEngine") -> None:
    """Asks one after the other, and prints what the engine answers."""
    questions = colliding_sums(engine.cache)
    trace = Trace(engine)
    trace.ask([chat(question) for question in questions])
    for question, answer in zip(questions, trace.answers, strict=True):
        print(f"  {question} {text_of(answer)}")
