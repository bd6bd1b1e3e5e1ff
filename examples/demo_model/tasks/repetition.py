"""Repeating a sentence of up to 16 words to the letter. Held out are whole sentences."""

from examples.demo_model.conversation import Dialogue, Exchange
from examples.demo_model.draw import Draw
from examples.demo_model.words import COMMON, NAMES, made_up_word, sentence


def repeat(draw: Draw) -> Dialogue:
    """Asks to repeat a sentence, or words without sense."""
    random = draw.random

    def make() -> str:
        if draw.chance(0.6):
            return sentence(random)
        words = []
        for _ in range(random.randint(2, 16)):
            kind = random.random()
            if kind < 0.25:
                words.append(made_up_word(random))
            elif kind < 0.4:
                words.append(str(random.randint(0, 9999)))
            else:
                words.append(random.choice((*COMMON, *NAMES)))
        return " ".join(words)

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
