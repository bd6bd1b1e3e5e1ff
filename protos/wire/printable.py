"""Texts of others, as a line of a log or of a terminal may show them.

Printable is what `str.isprintable` says: no control characters, line separators, unpaired
surrogates or invisible marks such as those that turn the direction of writing.
"""


def escape(text: str) -> str:
    r"""Returns a text with all that is not printable written as `repr` does, such as `\n`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def shown(text: str, max_characters: int = 100) -> str:
    """Returns a text as an error quotes it: cut, and escaped."""
    if len(text) > max_characters:
        text = f"{text[:max_characters]}…"
    return escape(text)
