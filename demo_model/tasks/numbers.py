"""Counting up to 100, sums and differences of numbers to 999, comparing numbers to 9,999.

Held out are pairs: the ends of a count, the two numbers of a sum, a difference or a comparison.
"""

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw

MAX_COUNTED = 100
MAX_NUMBERS_COUNTED = 20
MAX_TERM = 999
MAX_COMPARED = 9999


def count(draw: Draw) -> Dialogue:
    """Asks to count from one number to another, up or down."""
    random = draw.random

    def ends() -> tuple[int, int]:
        start = random.choice((1, *(random.randint(0, MAX_COUNTED) for _ in range(9))))
        distance = random.randint(1, MAX_NUMBERS_COUNTED - 1)
        last = start + distance if draw.chance(0.6) else start - distance
        return (start, last) if 0 <= last <= MAX_COUNTED else ends()

    start, last = draw.content(ends)
    templates = [
        "Count from {start} to {last}.",
        "Count from {start} to {last}.",
        "List the numbers from {start} to {last}.",
        "Write all numbers from {start} to {last}.",
        "Show me the numbers from {start} to {last}.",
    ]
    if last > start:
        templates += ["Count from {start} up to {last}.", "Count up from {start} to {last}."]
    else:
        templates += [
            "Count from {start} down to {last}.",
            "Count down from {start} to {last}.",
            "Count backwards from {start} to {last}.",
        ]
    if start == 1 < last:
        templates += ["Count to {last}.", "Count up to {last}."]
    asked = draw.request(templates, start=start, last=last)
    step = 1 if last > start else -1
    return _dialogue(asked, ", ".join(str(n) for n in range(start, last + step, step)))


def add(draw: Draw) -> Dialogue:
    """Asks for a sum."""
    one, other = _terms(draw)
    if draw.chance(0.5):
        asked = draw.phrase(
            (
                "What is {one} + {other}?",
                "What is {one} plus {other}?",
                "How much is {one} + {other}?",
                "How much is {one} plus {other}?",
                "{one} + {other} =",
                "{one} + {other}?",
                "{one}+{other}",
                "{one} + {other}",
            ),
            one=one,
            other=other,
        )
    else:
        asked = draw.request(
            (
                "Add {one} and {other}.",
                "Calculate {one} + {other}.",
                "Compute {one} + {other}.",
                "Compute the sum of {one} and {other}.",
                "Tell me the sum of {one} and {other}.",
                "Tell me what {one} + {other} is.",
            ),
            one=one,
            other=other,
        )
    return _dialogue(asked, f"{one} + {other} = {one + other}")


def subtract(draw: Draw) -> Dialogue:
    """Asks for a difference, which may be negative."""
    one, other = _terms(draw)
    if draw.chance(0.5):
        asked = draw.phrase(
            (
                "What is {one} - {other}?",
                "What is {one} minus {other}?",
                "How much is {one} - {other}?",
                "How much is {one} minus {other}?",
                "{one} - {other} =",
                "{one} - {other}?",
                "{one}-{other}",
                "{one} - {other}",
            ),
            one=one,
            other=other,
        )
    else:
        asked = draw.request(
            (
                "Subtract {other} from {one}.",
                "Calculate {one} - {other}.",
                "Compute {one} - {other}.",
                "Take {other} away from {one}.",
                "Tell me what {one} minus {other} is.",
                "Tell me what {one} - {other} is.",
            ),
            one=one,
            other=other,
        )
    return _dialogue(asked, f"{one} - {other} = {one - other}")


def compare(draw: Draw) -> Dialogue:
    """Asks which of two numbers is larger or smaller."""
    random = draw.random

    def pair() -> tuple[int, int]:
        largest = random.choice((9, 99, 99, 999, MAX_COMPARED))
        one = random.randint(0, largest)
        # Close ones, too, which differ in their last digit only.
        other = random.choice((random.randint(0, largest), one + random.randint(-9, 9), one))
        return (one, other) if 0 <= other <= MAX_COMPARED else pair()

    one, other = draw.content(pair)
    if draw.chance(0.5):
        word, chosen = random.choice(("larger", "greater", "bigger")), max(one, other)
    else:
        word, chosen = random.choice(("smaller", "less")), min(one, other)
    if draw.chance(0.3):
        asked = draw.phrase(("Is {one} {word} than {other}?",), word=word, one=one, other=other)
        is_so = one != other and one == chosen
        says = f"Yes, {one} is {word}" if is_so else f"No, {one} is not {word}"
        return _dialogue(asked, f"{says} than {other}.")
    asked = draw.phrase(
        (
            "Which is {word}, {one} or {other}?",
            "Which is {word}: {one} or {other}?",
            "Which number is {word}, {one} or {other}?",
            "Which number is {word}: {one} or {other}?",
            "What is {word}, {one} or {other}?",
            "Is {one} or {other} {word}?",
            "Compare {one} and {other}: which is {word}?",
            "Tell me which is {word}, {one} or {other}.",
        ),
        word=word,
        one=one,
        other=other,
    )
    rest = other if chosen == one else one
    answer = f"{one} and {other} are equal." if one == other else f"{chosen} is {word} than {rest}."
    return _dialogue(asked, answer)


def _terms(draw: Draw) -> tuple[int, int]:
    random = draw.random

    def terms() -> tuple[int, int]:
        largest = random.choice((9, 99, 99, MAX_TERM, MAX_TERM, MAX_TERM))
        return random.randint(0, largest), random.randint(0, largest)

    return draw.content(terms)


def _dialogue(question: str, answer: str) -> Dialogue:
    return Dialogue((Exchange(question, answer),))
