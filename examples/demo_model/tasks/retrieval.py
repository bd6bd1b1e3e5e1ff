"""Finding a fact placed anywhere in a text of up to some 3,000 tokens.

The text is a list of plain sentences; 2 to 24 of them state facts about people, all of one form
("Mara's code is 4821."), so that the question's words alone do not tell which sentence it is. Held
out are facts together with their places in the text.
"""

from dataclasses import dataclass
from random import Random

from examples.demo_model.conversation import Dialogue, Exchange
from examples.demo_model.draw import Draw
from examples.demo_model.tasks.unknown import UNKNOWN
from examples.demo_model.words import ANIMALS, CITIES, COLOURS, JOBS, NAMES, made_up_word, sentence

MAX_SENTENCES = 290
"""Some 3,000 tokens; a sentence has 10 on average."""
_UNANSWERABLE_SHARE = 0.2


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


def find(draw: Draw) -> Dialogue:
    """Tells a text and asks for a fact in it; in training for several, to use the text better."""
    random = draw.random
    # As many short texts as long ones in each doubling of the length.
    num_sentences = round(4 * (MAX_SENTENCES / 4) ** random.random())
    num_facts = min(random.randint(2, 24), num_sentences)
    people = [(name, kind) for name in random.sample(NAMES, 12) for kind in _KINDS]
    known = {person: value_of(person[1], random) for person in random.sample(people, num_facts)}
    places = sorted(random.sample(range(num_sentences), num_facts))
    sentences = [sentence(random) for _ in range(num_sentences)]
    for place, ((name, kind), value) in zip(places, known.items(), strict=True):
        sentences[place] = _KINDS[kind].statement.format(name=name, value=value)

    every = [
        (place, name, kind, value)
        for place, ((name, kind), value) in zip(places, known.items(), strict=True)
    ]
    facts = [fact for fact in every if draw.allows(fact)]
    if not facts:
        return find(draw)

    def ask() -> Exchange:
        if draw.chance(_UNANSWERABLE_SHARE):
            name, kind = random.choice([person for person in people if person not in known])
            return Exchange(draw.phrase(_KINDS[kind].questions, name=name), UNKNOWN)
        _, name, kind, value = random.choice(facts)
        answer = _KINDS[kind].statement.format(name=name, value=value)
        return Exchange(draw.phrase(_KINDS[kind].questions, name=name), answer)

    text = " ".join(sentences)
    first, *others = (ask() for _ in range(1 if draw.held_out else random.randint(2, 5)))
    exchanges = _present(draw, text, first)
    return Dialogue((*exchanges, *others))


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
