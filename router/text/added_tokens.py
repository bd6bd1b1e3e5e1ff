"""Added tokens, which a tokenizer searches for first, and where they cut a text in two.

A tokenizer first extracts the tokens that match the raw text (`normalized` is false), from left to
right, the longest at each position. It searches the rest for the other added tokens after
normalizing it. Then it tokenizes each piece between them separately.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer

_MAX_LENGTH = 256
"""Characters of a token; if any token is longer, no text is cut."""
# Placed after a token, each of these shows whether the tokenizer looks back across it.
_PROBES = ("word", " word", "\nword", "word" * 3, "é", "7")


def added_tokens(backend: Tokenizer) -> list[AddedToken]:
    """Returns all added tokens, in the order of their IDs."""
    return [token for _, token in sorted(backend.get_added_tokens_decoder().items())]


def twin(backend: Tokenizer) -> Tokenizer:
    """Returns a tokenizer that shares the model but has its own, changeable added tokens."""
    other = Tokenizer(backend.model)
    other.normalizer = backend.normalizer
    other.pre_tokenizer = backend.pre_tokenizer
    other.add_tokens(added_tokens(backend))
    if other.get_added_tokens_decoder() == backend.get_added_tokens_decoder():
        return other
    # IDs with gaps between them can only be loaded from the file.
    other = Tokenizer.from_str(backend.to_str())
    other.post_processor = None
    return other


def cutting_tokens(backend: Tokenizer) -> list[str]:
    """Returns the special tokens that cut every text in which they are found.

    The tokens of such a text are those of the text before it, the token, and those of the text
    after it. At its position, only another of these tokens can match instead.
    """
    return [text for text in found_alone(added_tokens(backend)) if _divides(backend, text)]


def found_alone(tokens: Sequence[AddedToken]) -> list[str]:
    """Returns the special tokens that always match, unless another of them matches instead."""
    if any(len(token.content) > _MAX_LENGTH for token in tokens):
        return []
    literal = [token for token in tokens if not token.normalized]
    cutting = {token.content for token in literal if token.special and not has_condition(token)}
    if any(token.single_word for token in literal):
        # A single_word token checks its neighbours, and the end of a text counts as no word.
        cutting = {text for text in cutting if _is_sign(text[0]) and _is_sign(text[-1])}
    others = [token.content for token in literal if token.content not in cutting]
    while rivals := [text for text in cutting if _has_rival(text, others)]:
        cutting.difference_update(rivals)
        others = rivals
    return sorted(cutting)


def has_condition(token: AddedToken) -> bool:
    """Whether the surroundings of a token change what it matches or takes along."""
    return token.single_word or token.lstrip or token.rstrip


def _is_sign(character: str) -> bool:
    return character.isascii() and not character.isalnum() and character != "_"


def _has_rival(text: str, others: Sequence[str]) -> bool:
    """Whether another token can match at this text's position or overlap its beginning."""
    beginnings = tuple(text[:length] for length in range(1, len(text)))
    return any(text in other or other[1:].endswith(beginnings) for other in others)


def _divides(backend: Tokenizer, text: str) -> bool:
    """Tests whether a text's tokens are those before and those after this token in it."""
    head = f"word{text}"
    texts = [head, *_PROBES, *(head + probe for probe in _PROBES)]
    first, *others = (
        encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
    )
    alone, behind = others[: len(_PROBES)], others[len(_PROBES) :]
    return all(first + ids == whole for ids, whole in zip(alone, behind, strict=True))
