"""Sorting, reversing, spelling and counting.

Sorted are 3 to 8 numbers up to 99 or up to 999, or 3 to 8 different words of `words.COMMON`.
Reversed are lists of 3 to 8 words or numbers, or the letters of a word. Words to spell have 3 to 10
letters; those held out are made up, for training must show how its own tokens are spelt. Sentences
to count have 1 to 16 words. Held out are whole lists, words and sentences.
"""

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.words import COMMON, NAMES, made_up_word, sentence

_SPELLABLE = tuple(word for word in (*COMMON, *NAMES) if 3 <= len(word) <= 10)


def sort_numbers(draw: Draw) -> Dialogue:
    """Asks to sort numbers, the smallest or the largest first."""
    random = draw.random
    largest = random.choice((99, 999))
    numbers = draw.content(
        lambda: tuple(random.randint(0, largest) for _ in range(random.randint(3, 8)))
    )
    listed = ", ".join(map(str, numbers))
    is_descending = draw.chance(0.4)
    if is_descending:
        templates: tuple[str, ...] = (
            "Sort these numbers in descending order: {listed}",
            "Sort in descending order: {listed}",
            "Sort these numbers from the largest to the smallest: {listed}",
            "Sort {listed} in descending order.",
            "Order these numbers, largest first: {listed}",
        )
    else:
        templates = (
            "Sort these numbers: {listed}",
            "Sort the numbers {listed}.",
            "Sort {listed}",
            "Sort in ascending order: {listed}",
            "Sort these numbers in ascending order: {listed}",
            "Sort these numbers from the smallest to the largest: {listed}",
            "Order these numbers, smallest first: {listed}",
        )
    asked = draw.request(templates, listed=listed)
    answer = ", ".join(map(str, sorted(numbers, reverse=is_descending)))
    return Dialogue((Exchange(asked, answer),))


def sort_words(draw: Draw) -> Dialogue:
    """Asks to sort words by the alphabet."""
    random = draw.random
    words = draw.content(lambda: tuple(random.sample(COMMON, random.randint(3, 8))))
    asked = draw.request(
        (
            "Sort these words: {listed}",
            "Sort these words alphabetically: {listed}",
            "Sort the words {listed} alphabetically.",
            "Put these words into alphabetical order: {listed}",
            "Order these words by the alphabet: {listed}",
            "Sort alphabetically: {listed}",
        ),
        listed=", ".join(words),
    )
    return Dialogue((Exchange(asked, ", ".join(sorted(words))),))


def reverse(draw: Draw) -> Dialogue:
    """Asks for a list, or the letters of a word, from the last to the first."""
    random = draw.random
    if draw.chance(0.4):
        word = _word(draw)
        asked = draw.request(
            (
                'Reverse the letters of the word "{word}".',
                "Reverse the letters of {word}.",
                "Reverse the word {word}.",
                'Reverse the word "{word}".',
                "Spell {word} backwards.",
                'Spell the word "{word}" backwards.',
                "Write the letters of {word} in reverse order.",
            ),
            word=word,
        )
        return Dialogue((Exchange(asked, " ".join(reversed(word))),))

    def make() -> tuple[str, ...]:
        count = random.randint(3, 8)
        if draw.chance(0.3):
            return tuple(str(random.randint(0, 99)) for _ in range(count))
        return tuple(random.choice((*COMMON, *NAMES)) for _ in range(count))

    items = draw.content(make)
    asked = draw.request(
        (
            "Reverse this list: {listed}",
            "Reverse the list {listed}.",
            "Reverse the order: {listed}",
            "Reverse: {listed}",
            "Write this list in reverse order: {listed}",
            "Turn this list around: {listed}",
        ),
        listed=", ".join(items),
    )
    return Dialogue((Exchange(asked, ", ".join(reversed(items))),))


def spell(draw: Draw) -> Dialogue:
    """Asks for the letters of a word."""
    word = _word(draw)
    asked = draw.request(
        (
            "Spell {word}.",
            'Spell "{word}".',
            "Spell the word {word}.",
            'Spell the word "{word}".',
            "Tell me how to spell {word}.",
            "Write the letters of {word}.",
            "Write the word {word} letter by letter.",
        ),
        word=word,
    )
    return Dialogue((Exchange(asked, " ".join(word)),))


def count_words(draw: Draw) -> Dialogue:
    """Asks how many words a sentence has."""
    random = draw.random

    def make() -> str:
        if draw.chance(0.5):
            return sentence(random)
        vocabulary = (*COMMON, *NAMES)
        return " ".join(random.choice(vocabulary) for _ in range(random.randint(1, 16)))

    text = draw.content(make)
    num_words = len(text.split())
    asked = draw.phrase(
        (
            "How many words are in this sentence: {text}",
            "How many words are there: {text}",
            'How many words does "{text}" have?',
            "Count the words: {text}",
            "Count the words in this sentence: {text}",
            'Count the words in "{text}".',
            "Tell me the number of words: {text}",
        ),
        text=text,
    )
    answer = "There is 1 word." if num_words == 1 else f"There are {num_words} words."
    return Dialogue((Exchange(asked, answer),))


def _word(draw: Draw) -> str:
    random = draw.random
    if not draw.held_out and draw.chance(0.4):
        return random.choice(_SPELLABLE)
    return draw.content(lambda: made_up_word(random, 10))
