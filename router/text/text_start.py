"""What a tokenizer puts before a text, but not before what follows a special token in it."""

from tokenizers.pre_tokenizers import Metaspace, PreTokenizer

_AT_START, _NEVER = b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'
"""In the settings as JSON, where no string can contain them: it would have escaped quotes."""


def behind_start(pre_tokenizer: PreTokenizer | None) -> PreTokenizer | None:
    """Returns the pre-tokenizer for text that is not the beginning of one; None if it is the same.

    Metaspace with the scheme "first", as of Mistral 2 and 3, puts a space before a text.
    """
    settings = b"" if pre_tokenizer is None else pre_tokenizer.__getstate__()
    if _AT_START not in settings:
        return None
    # The state, once set, makes any pre-tokenizer the one that it describes.
    other = Metaspace()
    other.__setstate__(settings.replace(_AT_START, _NEVER))
    return other
