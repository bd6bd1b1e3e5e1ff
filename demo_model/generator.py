"""The seeded generator of conversations, for training and for the evaluation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from random import Random

from demo_model.conversation import Conversation, Dialogue, Exchange, Message
from demo_model.draw import Draw
from demo_model.tasks import lists, numbers
from demo_model.tasks.facts import facts
from demo_model.tasks.introduction import introduction
from demo_model.tasks.memory import remember
from demo_model.tasks.primes import primes
from demo_model.tasks.repetition import repeat
from demo_model.tasks.retrieval import find
from demo_model.tasks.structured import structured
from demo_model.tasks.tools import tools
from demo_model.tasks.unknown import unknown


@dataclass(frozen=True, slots=True)
class Task:
    """A thing that the model can do.

    Attributes:
        make: Draws a question with its answer.
        weight: How often training asks it, relative to the others.
    """

    make: Callable[[Draw], Dialogue]
    weight: float


TASKS = {
    "introduction": Task(introduction, 3.0),
    "primes": Task(primes, 5.0),
    "count": Task(numbers.count, 3.0),
    "add": Task(numbers.add, 9.0),
    "subtract": Task(numbers.subtract, 9.0),
    "compare": Task(numbers.compare, 4.0),
    "sort numbers": Task(lists.sort_numbers, 7.0),
    "sort words": Task(lists.sort_words, 6.0),
    "reverse": Task(lists.reverse, 5.0),
    "spell": Task(lists.spell, 4.0),
    "count words": Task(lists.count_words, 6.0),
    "repeat": Task(repeat, 3.0),
    "find": Task(find, 6.0),
    "remember": Task(remember, 4.0),
    "facts": Task(facts, 3.0),
    "json": Task(structured, 4.0),
    "tools": Task(tools, 3.0),
    "unknown": Task(unknown, 3.0),
}
"""In order of importance."""

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "You are the demo model of Pagestream.",
    "Answer the question.",
    "Be brief and correct.",
    "You help people with small tasks.",
    "You are an assistant that answers every question truthfully.",
)
_SIDE_TASKS = tuple(
    name for name in TASKS if name not in ("find", "remember", "json", "tools", "unknown")
)
"""Tasks of one exchange whose answer depends on nothing else that is said."""


def conversations(seed: str) -> Iterator[Conversation]:
    """Yields training conversations without end; equal seeds give equal ones."""
    random = Random(seed)
    draw = Draw(random, held_out=False)
    names = list(TASKS)
    weights = [task.weight for task in TASKS.values()]
    while True:
        (name,) = random.choices(names, weights)
        yield _conversation(name, draw)


def questions(seed: str, num_questions: int) -> list[Conversation]:
    """Returns held-out conversations, whose last answer is asked for; the tasks take turns."""

    def make() -> Iterator[Conversation]:
        draw = Draw(Random(seed), held_out=True)
        names = list(TASKS)
        for index in count():
            yield _conversation(names[index % len(names)], draw)

    return list(islice(make(), num_questions))


def _conversation(name: str, draw: Draw) -> Conversation:
    dialogue = TASKS[name].make(draw)
    random = draw.random
    messages = _system(dialogue, draw)
    if not dialogue.stands_alone:
        messages += _side_messages(random.choice((0, 0, 0, 1, 1, 2, 3)), draw)
    *before, last = dialogue.exchanges
    for exchange in before:
        messages += _messages(exchange)
    if dialogue.may_be_interrupted:
        messages += _side_messages(random.randint(0, 3), draw)
    messages += _messages(last)
    return Conversation(name, tuple(messages))


def _system(dialogue: Dialogue, draw: Draw) -> list[Message]:
    general = draw.random.choice(_SYSTEM_PROMPTS) if draw.chance(0.5) else ""
    content = "\n\n".join(part for part in (general, dialogue.system) if part)
    return [Message("system", content)] if content else []


def _side_messages(num_exchanges: int, draw: Draw) -> list[Message]:
    # With the training's contents also in the evaluation, where these are not what is asked.
    draw = Draw(draw.random, held_out=False)
    messages = []
    for _ in range(num_exchanges):
        (exchange,) = TASKS[draw.random.choice(_SIDE_TASKS)].make(draw).exchanges
        messages += _messages(exchange)
    return messages


def _messages(exchange: Exchange) -> list[Message]:
    return [Message(exchange.role, exchange.question), Message("assistant", exchange.answer)]
