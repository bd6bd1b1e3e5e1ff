"""Finds stop texts in a text that arrives in pieces.

The stop text that is complete first ends the text; of several that end with the same character, the
longest. So the result does not depend on how the text is cut into pieces.
"""

from array import array
from collections.abc import Collection

_NONE = -1


class StopTexts:
    """An automaton that finds any of some texts, in time that their number does not change.

    Its states are the prefixes of the texts, and 0 is the empty one (A. V. Aho and M. J. Corasick,
    Efficient string matching, 1975). A state takes some 16 bytes: the first child of a state is the
    state after it, and only the other children are in a dict.
    """

    def __init__(self, texts: Collection[str]) -> None:
        """Builds the automaton, in a few microseconds for each of their characters."""
        self._texts = sorted(set(texts))
        self._characters = [""]
        self._is_first_child = bytearray(1)
        self._others: dict[tuple[int, str], int] = {}
        self._lengths = array("i", [0])
        self._found = array("i", [_NONE])
        parents = self._add_texts()
        self._shorter = array("i", bytes(4 * len(parents)))
        self._link(parents)
        self.starts = frozenset(text[0] for text in self._texts)

    def _add_texts(self) -> "array[int]":
        """Adds a state for each prefix; returns the parents of all states."""
        parents = array("i", [0])
        path, previous = [0], ""
        for number, text in enumerate(self._texts):
            # Since the texts are sorted, what is new begins where one differs from the last.
            num_known = _num_common(previous, text)
            del path[num_known + 1 :]
            for character in text[num_known:]:
                parent, state = path[-1], len(parents)
                is_first = parent == state - 1
                if not is_first:
                    self._others[parent, character] = state
                self._characters.append(character)
                self._is_first_child.append(is_first)
                self._lengths.append(len(path))
                self._found.append(_NONE)
                parents.append(parent)
                path.append(state)
            self._found[path[-1]] = number
            previous = text
        self._characters.append("")
        self._is_first_child.append(False)
        return parents

    def _link(self, parents: "array[int]") -> None:
        """Links each state to its longest proper suffix that is a state."""
        lengths, found = self._lengths, self._found
        for state in sorted(range(1, len(parents)), key=lengths.__getitem__):
            if lengths[state] > 1:
                shorter = self._shorter[parents[state]]
                self._shorter[state] = shorter = self.next(shorter, self._characters[state])
                if found[state] == _NONE:
                    found[state] = found[shorter]

    def next(self, state: int, character: str) -> int:
        """Returns the state after one more character."""
        while True:
            child = state + 1
            if self._characters[child] == character and self._is_first_child[child]:
                return child
            other = self._others.get((state, character))
            if other is not None:
                return other
            if not state:
                return 0
            state = self._shorter[state]

    def length(self, state: int) -> int:
        """Returns how many of the last characters may begin a stop text."""
        return self._lengths[state]

    def found(self, state: int) -> str | None:
        """Returns the longest stop text that the last character completes, or None."""
        number = self._found[state]
        return None if number == _NONE else self._texts[number]


def _num_common(one: str, other: str) -> int:
    """Returns how many characters two texts begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


class StopSearch:
    """Searches one text for stop texts, and holds back what may still become one.

    Attributes:
        found: The stop text that ended the text, or None.
    """

    def __init__(self, stop_texts: StopTexts, *, is_included: bool = False) -> None:
        """Starts a text.

        Args:
            stop_texts: What ends it.
            is_included: Whether the text ends behind the stop text rather than before it. Then
                nothing needs to be held back.
        """
        self.found: str | None = None
        self._stop_texts = stop_texts
        self._is_included = is_included
        self._state = 0
        self._held_back = ""

    def push(self, text: str, *, may_end: bool = True) -> str:
        """Adds a piece, and returns what is certainly part of the text.

        Args:
            text: The piece; none may follow once `found` is set.
            may_end: False ignores stop texts that this piece completes.
        """
        stop_texts, state = self._stop_texts, self._state
        if not state and stop_texts.starts.isdisjoint(text):
            return text
        for position, character in enumerate(text, 1):
            state = stop_texts.next(state, character)
            found = stop_texts.found(state)
            if found is not None and may_end:
                self.found = found
                whole = self._held_back + text[:position]
                self._held_back = ""
                return whole if self._is_included else whole[: -len(found)]
        self._state = state
        if self._is_included:
            return text
        whole = self._held_back + text
        num_certain = len(whole) - stop_texts.length(state)
        self._held_back = whole[num_certain:]
        return whole[:num_certain]

    def flush(self) -> str:
        """Returns what was held back when no more text comes."""
        text, self._held_back = self._held_back, ""
        return text
