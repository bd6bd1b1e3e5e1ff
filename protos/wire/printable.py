"""Makes foreign text safe to show on one line of a log or a terminal.

Printable is what `str.isprintable` accepts: no control characters, line separators, unpaired
surrogates or invisible marks such as those that change the direction of writing.
"""

from protos.wire.limits import MAX_LABEL_CHARACTERS

NAME_RULE = f"1 to {MAX_LABEL_CHARACTERS} printable characters without spaces"


def escape(text: str) -> str:
    r"""Returns a text with all unprintable characters written as in `repr`, such as `\n`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def shown(text: str, max_characters: int = 100) -> str:
    """Returns a text as quoted in errors: cut and escaped."""
    if len(text) > max_characters:
        text = f"{text[:max_characters]}…"
    return escape(text)


def is_name(text: str) -> bool:
    """Whether a text is valid as the name of a model, by `NAME_RULE`."""
    return 1 <= len(text) <= MAX_LABEL_CHARACTERS and text.isprintable() and " " not in text


def first_unprintable(text: str) -> str:
    """Returns the first unprintable character, escaped, or an empty string."""
    return next((escape(character) for character in text if not character.isprintable()), "")
