"""Remembering what the user said of himself in earlier turns; the last word on a thing counts.

Held out are values together with what they are of.
"""

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.tasks.retrieval import value_of
from demo_model.tasks.unknown import UNKNOWN
from demo_model.words import FOODS, person

_TOLD = {
    "name": ("My name is {value}.", "I am {value}.", "You can call me {value}."),
    "code": (
        "My code is {value}.",
        "Remember my code: {value}.",
        "Note that my code is {value}.",
    ),
    "city": ("I live in {value}.", "My home is in {value}.", "The city I live in is {value}."),
    "job": ("I work as a {value}.", "I am a {value} by trade.", "My job is {value}."),
    "colour": ("My favourite colour is {value}.", "The colour I like best is {value}."),
    "animal": ("I have a {value}.", "At home I have a {value}.", "My animal is a {value}."),
    "password": ("My password is {value}.", "Remember my password: {value}."),
    "food": ("My favourite food is {value}.", "I like {value} best.", "I love eating {value}."),
    "age": ("I am {value} years old.", "My age is {value}.", "I turned {value} this year."),
}
_ASKED = {
    "name": ("What is my name?", "Who am I?", "Do you remember my name?", "Tell me my name."),
    "code": ("What is my code?", "Which code do I have?", "Tell me my code."),
    "city": ("Where do I live?", "Which city do I live in?", "Tell me where I live."),
    "job": ("What is my job?", "What do I work as?", "Tell me what my job is."),
    "colour": ("What is my favourite colour?", "Which colour do I like best?"),
    "animal": ("Which animal do I have?", "What animal do I have?", "Tell me which animal I have."),
    "password": ("What is my password?", "Which password do I have?", "Tell me my password."),
    "food": ("What is my favourite food?", "Which food do I like best?", "What do I love eating?"),
    "age": ("How old am I?", "What is my age?", "Tell me how old I am."),
}
_ANSWERS = {
    "name": "Your name is {value}.",
    "code": "Your code is {value}.",
    "city": "You live in {value}.",
    "job": "You work as a {value}.",
    "colour": "Your favourite colour is {value}.",
    "animal": "You have a {value}.",
    "password": "Your password is {value}.",
    "food": "Your favourite food is {value}.",
    "age": "You are {value} years old.",
}
_MAX_DRAWS = 1000
"""Then no value of these kinds belongs to the split, as of a single one with few values."""
ACKNOWLEDGEMENT = "I will remember that."


def remember(draw: Draw) -> Dialogue:
    """Tells one to four things, one of them perhaps twice, and asks for one, or for another."""
    random = draw.random
    kinds = random.sample(list(_TOLD), random.randint(1, 4))
    if draw.chance(0.2):
        kinds.append(random.choice(kinds))
    if draw.chance(0.15):
        asked_kind = random.choice([kind for kind in _TOLD if kind not in kinds])
    else:
        asked_kind = random.choice(kinds)

    def tell() -> list[tuple[str, str]]:
        return [(kind, _value(kind, draw)) for kind in kinds]

    told = tell()
    num_draws = 1
    # The dictionary keeps what was said last.
    while not draw.allows((asked_kind, dict(told).get(asked_kind, told))):
        if num_draws == _MAX_DRAWS:
            return remember(draw)
        told = tell()
        num_draws += 1
    value = dict(told).get(asked_kind)
    answer = _ANSWERS[asked_kind].format(value=value) if value else UNKNOWN
    exchanges = [
        Exchange(_opening(draw) + draw.phrase(_TOLD[kind], value=value), ACKNOWLEDGEMENT)
        for kind, value in told
    ]
    exchanges.append(Exchange(draw.phrase(_ASKED[asked_kind]), answer))
    return Dialogue(tuple(exchanges), may_be_interrupted=True)


def _opening(draw: Draw) -> str:
    return draw.random.choice(("Hi, ", "Hello! ", "By the way, ")) if draw.chance(0.2) else ""


def _value(kind: str, draw: Draw) -> str:
    match kind:
        case "name":
            return person(draw.random)
        case "food":
            return draw.random.choice(FOODS)
        case "age":
            return str(draw.random.randint(5, 99))
    return value_of(kind, draw.random)
