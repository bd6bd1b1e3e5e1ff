"""Random choices of a task, of which some are kept from training."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar
from zlib import crc32

_T = TypeVar("_T")

_HELD_OUT_ONE_IN = 10
_OPENINGS = ("Please ", "Could you ", "Can you ", "Now ", "Hello! ", "Next, ", "I want you to ")


def is_held_out(content: object) -> bool:
    """Tells whether training never sees this content; `repr(content)` decides, for one in ten."""
    return crc32(repr(content).encode()) % _HELD_OUT_ONE_IN == 0


class Draw:
    """Draws the parts of questions, either for training or for the held-out evaluation.

    Attributes:
        random: For all that both may see: phrasings, order, decoration.
        held_out: Whether contents are those that training never sees.
    """

    def __init__(self, random: Random, *, held_out: bool) -> None:
        self.random = random
        self.held_out = held_out

    def content(self, make: Callable[[], _T]) -> _T:
        """Calls `make` until what it returns belongs to this side of the split."""
        while not self.allows(content := make()):
            pass
        return content

    def allows(self, content: object) -> bool:
        """Tells whether this content belongs to this side of the split."""
        return is_held_out(content) == self.held_out

    def chance(self, share: float) -> bool:
        """Returns True in that share of the calls."""
        return self.random.random() < share

    def phrase(self, templates: Sequence[str], **values: object) -> str:
        """Fills one of the templates in, and writes its own words as people do.

        Args:
            templates: Format strings.
            values: What goes into their braces; this is left as it is.
        """
        template = self.random.choice(templates)
        if self.chance(0.3):
            template = _lower_first(template)
        return self._casual(template).format(**values)

    def request(self, templates: Sequence[str], **values: object) -> str:
        """Fills in one of the templates, all imperatives, at times with a courtesy before it."""
        if self.chance(0.7):
            return self.phrase(templates, **values)
        opening = self.random.choice(_OPENINGS)
        template = opening + _lower_first(self.random.choice(templates))
        return self._casual(template).format(**values)

    def _casual(self, template: str) -> str:
        if self.chance(0.1):
            template = template.replace("hat is ", "hat's ")
        if template[-1] == "." and self.chance(0.05):
            return template[:-1] + ", please."
        return template[:-1] if template[-1] in ".?" and self.chance(0.3) else template


def _lower_first(text: str) -> str:
    return text if text.startswith("I ") else text[0].lower() + text[1:]
