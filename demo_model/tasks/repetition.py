"""Repeating a sentence, or up to 16 words, numbers and made-up words, to the letter.

Held out are whole sentences.
"""

from random import Random

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.words import COMMON, NAMES, made_up_word, sentence


def repeat(draw: Draw) -> Dialogue:
    """Asks to repeat a sentence, or words without sense."""
    random = draw.random

    def make() -> str:
        if draw.chance(0.6):
            return sentence(random)
        return " ".join(_word(random) for _ in range(random.randint(1, 16)))

    text = draw.content(make)
    asked = draw.request(
        (
            "Repeat: {text}",
            "Repeat this: {text}",
            "Repeat this sentence: {text}",
            "Repeat after me: {text}",
            "Say this again: {text}",
            "Say: {text}",
            'Repeat "{text}"',
            "Write this sentence once more: {text}",
            "Copy this sentence: {text}",
        ),
        text=text,
    )
    return Dialogue((Exchange(asked, text),))


def _word(random: Random) -> str:
    kind = random.random()
    if kind < 0.15:
        return str(random.randint(0, 9999))
    word = made_up_word(random) if kind < 0.4 else random.choice((*COMMON, *NAMES))
    if random.random() < 0.1:
        word = word.capitalize()
    return word + random.choice((",", "!", "?", ".", ";", ":")) if random.random() < 0.1 else word
