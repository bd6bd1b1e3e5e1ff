"""The tokens of a model as the grammar library needs them."""

from collections.abc import Collection

from llguidance import LLTokenizer

FILE_NAME = "tokenizer.json"
"""The one file of a model folder that tells which text each token is."""


class UnusableTokenizer(Exception):
    """Grammars cannot be used with this model; the text says why."""


def read_tokenizer(content: bytes, vocab_size: int, eos_token_ids: Collection[int]) -> LLTokenizer:
    """Reads the tokens of a model; takes about two seconds for 150,000 of them.

    A token of the model that the file does not name is never allowed, and one that stands for no
    text only if the grammar names it.

    Args:
        content: `FILE_NAME` of the model.
        vocab_size: The number of the model's logits.
        eos_token_ids: All tokens that end a text.

    Raises:
        UnusableTokenizer: The model has no token that ends a text, or the library cannot read the
            file.
    """
    if not eos_token_ids:
        raise UnusableTokenizer("no token ends a text")
    if not content.lstrip().startswith(b"{"):
        # The library would take another text for a path or a name on the hub.
        raise UnusableTokenizer(f"{FILE_NAME} is not a JSON object")
    try:
        return LLTokenizer(content.decode(), n_vocab=vocab_size, eos_token=sorted(eos_token_ids))
    # A library in Rust panics with what is no Exception.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UnusableTokenizer(f"{FILE_NAME} cannot be used: {error}") from error
