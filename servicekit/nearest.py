"""Which of the known names a mistyped one most likely means."""

import difflib
from collections.abc import Iterable

_MAX_CHARACTERS = 100
"""Of a name that is looked for; longer ones are nobody's typing error."""
_MIN_CHARACTERS = 3
"""Of a part of a name that is looked for."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that a person most likely meant, or None.

    The only one that begins with what was written, else a similar one, else the only one that
    contains it.
    """
    if len(name) > _MAX_CHARACTERS:
        return None
    by_plain = {_plain(one): one for one in known}
    wanted = _plain(name)
    beginning = [one for one in by_plain if one.startswith(wanted)]
    containing = [one for one in by_plain if len(wanted) >= _MIN_CHARACTERS and wanted in one]
    for found in (beginning, difflib.get_close_matches(wanted, by_plain, n=1), containing):
        if len(found) == 1:
            return by_plain[found[0]]
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error that suggests the nearest name, or an empty text."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def _plain(name: str) -> str:
    return name.replace("_", "-").lower()
