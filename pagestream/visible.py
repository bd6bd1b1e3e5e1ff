"""Makes what a peer says safe to show on a terminal, where text may have several lines."""

import unicodedata

from protos.wire.printable import escape

_KEPT = {"\n", "\t", "\u200c", "\u200d"}
"""Line breaks, and what joins letters and emojis or keeps them apart."""


def visible(text: str) -> str:
    r"""Returns a text whose control characters and invisible marks are written as in `repr`.

    Line breaks, tabs and spaces of any kind stay. Escape sequences become texts such as `\x1b[2J`.
    It can be applied piece by piece.
    """
    if text.isprintable():
        return text
    return "".join(one if _is_kept(one) else escape(one) for one in text)


def _is_kept(character: str) -> bool:
    return character in _KEPT or unicodedata.category(character) == "Zs"
