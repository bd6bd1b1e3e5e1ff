"""The tokens that a tokenizer looks for before all else, and where they cut a text in two.

A tokenizer first takes out those that match the text as it is (`normalized` is false), from left to
right, at each place the longest; the others are looked for in what is left, once that is
normalized. Then each piece between them is tokenized by itself.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer

_MAX_LENGTH = 256
"""Characters of a token; with longer ones nothing is cut."""
# Behind a token, each of these would show whether the tokenizer looks back over it.
_PROBES = ("word", " word", "\nword", "word" * 3, "é", "7")


def added_tokens(backend: Tokenizer) -> list[AddedToken]:
    """Returns all of them, in the order of their IDs."""
    return [token for _, token in sorted(backend.get_added_tokens_decoder().items())]


def twin(backend: Tokenizer) -> Tokenizer:
    """Returns a tokenizer that shares the model, with added tokens of its own to change."""
    other = Tokenizer(backend.model)
    other.normalizer = backend.normalizer
    other.pre_tokenizer = backend.pre_tokenizer
    other.add_tokens(added_tokens(backend))
    if other.get_added_tokens_decoder() == backend.get_added_tokens_decoder():
        return other
    # IDs with gaps between them come only from the file.
    other = Tokenizer.from_str(backend.to_str())
    other.post_processor = None
    return other


def cutting_tokens(backend: Tokenizer) -> list[str]:
    """Returns the special tokens that cut every text in which they are found.

    The tokens of such a text are those of what stands before, the token, and those of what stands
    behind. Where one of them stands, no token but another of them may be found instead.
    """
    return [text for text in found_alone(added_tokens(backend)) if _divides(backend, text)]


def found_alone(tokens: Sequence[AddedToken]) -> list[str]:
    """Returns the special tokens that are found wherever no other of them is found instead."""
    if any(len(token.content) > _MAX_LENGTH for token in tokens):
        return []
    literal = [token for token in tokens if not token.normalized]
    cutting = {token.content for token in literal if token.special and not has_condition(token)}
    if any(token.single_word for token in literal):
        # Such a token asks what its neighbours are, and takes the end of a text for no word.
        cutting = {text for text in cutting if _is_sign(text[0]) and _is_sign(text[-1])}
    others = [token.content for token in literal if token.content not in cutting]
    while rivals := [text for text in cutting if _has_rival(text, others)]:
        cutting.difference_update(rivals)
        others = rivals
    return sorted(cutting)


def has_condition(token: AddedToken) -> bool:
    """Whether what stands beside a token changes what is taken with it."""
    return token.single_word or token.lstrip or token.rstrip


def _is_sign(character: str) -> bool:
    return character.isascii() and not character.isalnum() and character != "_"


def _has_rival(text: str, others: Sequence[str]) -> bool:
    """Whether another token may be found from before this text on, or in its place."""
    beginnings = tuple(text[:length] for length in range(1, len(text)))
    return any(text in other or other[1:].endswith(beginnings) for other in others)


def _divides(backend: Tokenizer, text: str) -> bool:
    """Tries out whether a text's tokens are those before and those behind a token in it."""
    head = f"word{text}"
    texts = [head, *_PROBES, *(head + probe for probe in _PROBES)]
    first, *others = (
        encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
    )
    alone, behind = others[: len(_PROBES)], others[len(_PROBES) :]
    return all(first + ids == whole for ids, whole in zip(alone, behind, strict=True))
