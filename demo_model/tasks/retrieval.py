"""Finding a fact placed anywhere in a text of up to some 3,000 tokens.

The text is a list of plain sentences; 2 to 24 of them state facts about people, all of one form
("Mara's code is 4821."), so that the question's words alone do not tell which sentence it is. One
question in eight is about somebody whom the text does not name. Held out are facts together with
their places in the text.

Training also asks what the text does not say of somebody whom it names; the model often makes such
a thing up, so the evaluation leaves these questions out.
"""

from dataclasses import dataclass
from random import Random

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.tasks.unknown import UNKNOWN
from demo_model.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    JOBS,
    NAMES,
    made_up_word,
    person,
    sentence,
)

MAX_SENTENCES = 290
"""Some 3,000 tokens; a sentence has 10 on average."""
_STRANGER_SHARE = 0.125
_UNSAID_SHARE = 0.125


@dataclass(frozen=True, slots=True)
class Kind:
    """A thing that one may know of a person.

    Attributes:
        statement: Says it of a name and a value.
        questions: Ask for it.
    """

    statement: str
    questions: tuple[str, ...]


_KINDS = {
    "code": Kind(
        "{name}'s code is {value}.",
        (
            "What is {name}'s code?",
            "What is the code of {name}?",
            "Tell me {name}'s code.",
            "Which code does {name} have?",
        ),
    ),
    "city": Kind(
        "{name} lives in {value}.",
        (
            "Where does {name} live?",
            "In which city does {name} live?",
            "Which city does {name} live in?",
            "Tell me where {name} lives.",
        ),
    ),
    "job": Kind(
        "{name} works as a {value}.",
        (
            "What does {name} work as?",
            "What is the job of {name}?",
            "What is {name}'s job?",
            "Tell me what {name} works as.",
        ),
    ),
    "colour": Kind(
        "{name}'s favourite colour is {value}.",
        (
            "What is {name}'s favourite colour?",
            "Which colour does {name} like best?",
            "What is the favourite colour of {name}?",
            "Tell me {name}'s favourite colour.",
        ),
    ),
    "animal": Kind(
        "{name} has a {value}.",
        (
            "Which animal does {name} have?",
            "What animal does {name} have?",
            "Tell me which animal {name} has.",
        ),
    ),
    "password": Kind(
        "{name}'s password is {value}.",
        (
            "What is {name}'s password?",
            "What is the password of {name}?",
            "Tell me {name}'s password.",
            "Which password does {name} have?",
        ),
    ),
}


def value_of(kind: str, random: Random) -> str:
    """Draws what one may know of that kind."""
    match kind:
        case "code":
            return str(random.randint(1000, 9999))
        case "city":
            return random.choice(CITIES)
        case "job":
            return random.choice(JOBS)
        case "colour":
            return random.choice(COLOURS)
        case "animal":
            return random.choice(ANIMALS)
    return made_up_word(random)


@dataclass(frozen=True, slots=True)
class _Fact:
    """What a text says in its sentence number `place`, or does not say: then `place` is -1."""

    place: int
    name: str
    kind: str
    value: str

    @property
    def statement(self) -> str:
        return _KINDS[self.kind].statement.format(name=self.name, value=self.value)


def find(draw: Draw) -> Dialogue:
    """Tells a text and asks for a fact in it; in training for several, to use the text better."""
    random = draw.random
    said, unsaid = _facts(random)
    wanted = [fact for fact in said if draw.allows((fact.place, fact.name, fact.kind, fact.value))]
    if not wanted:
        return find(draw)
    text = _text(said, random)

    def ask() -> Exchange:
        if draw.chance(_STRANGER_SHARE):
            return _ask(_stranger(text, random), UNKNOWN, draw)
        if draw.chance(_UNSAID_SHARE) and not draw.held_out:
            return _ask(random.choice(unsaid), UNKNOWN, draw)
        fact = random.choice(wanted)
        return _ask(fact, fact.statement, draw)

    first, *others = (ask() for _ in range(1 if draw.held_out else random.randint(2, 5)))
    return Dialogue((*_present(draw, text, first), *others))


def _facts(random: Random) -> tuple[list[_Fact], list[_Fact]]:
    """Returns facts for a text, in the order of their places, and some that it does not say."""
    # As many short texts as long ones in each doubling of the length.
    num_sentences = round(4 * (MAX_SENTENCES / 4) ** random.random())
    num_facts = min(random.randint(2, 24), num_sentences)
    names = {person(random): None for _ in range(12)}
    drawn = random.sample([(name, kind) for name in names for kind in _KINDS], num_facts + 4)
    places = [*sorted(random.sample(range(num_sentences), num_facts)), *[-1] * 4]
    facts = [
        _Fact(place, name, kind, value_of(kind, random))
        for place, (name, kind) in zip(places, drawn, strict=True)
    ]
    return facts[:num_facts], facts[num_facts:]


def _text(facts: list[_Fact], random: Random) -> str:
    """Puts the facts between other sentences."""
    statements = {fact.place: fact.statement for fact in facts}
    num_sentences = facts[-1].place + 1 + random.randint(0, facts[-1].place // 8)
    return " ".join(statements.get(place) or sentence(random) for place in range(num_sentences))


def _stranger(text: str, random: Random) -> _Fact:
    """Returns a fact about somebody whom the text does not name."""
    absent = [name for name in NAMES if name not in text]
    name = random.choice(absent) if absent else made_up_word(random).capitalize()
    return _Fact(-1, name, random.choice(list(_KINDS)), "")


def _ask(fact: _Fact, answer: str, draw: Draw) -> Exchange:
    return Exchange(draw.phrase(_KINDS[fact.kind].questions, name=fact.name), answer)


def _present(draw: Draw, text: str, first: Exchange) -> list[Exchange]:
    """Returns the exchanges that tell the text and ask the first question."""
    way = draw.random.randrange(4)
    if way == 0:
        return [Exchange(f"{text}\n\n{first.question}", first.answer)]
    if way == 1:
        return [Exchange(f"{first.question}\n\n{text}", first.answer)]
    if way == 2:
        asked = f"Read this text and answer the question.\n\n{text}\n\nQuestion: {first.question}"
        return [Exchange(asked, first.answer)]
    opening = draw.request(("Read this text:", "Remember this text:", "Here is a text:"))
    return [Exchange(f"{opening}\n\n{text}", "I have read the text."), first]
