"""Exercise 6: who may share blocks?

An answer that begins at once tells that somebody has sent the same prompt before. Between customers
that is a secret told. So requests carry a salt, and only those with an equal salt share blocks. Nor
may two models share any: their keys and values of equal tokens differ.
"""


def salted_digests(token_ids: list[int], block_size: int, model: str, salt: str) -> list[bytes]:
    """Returns the digest of each full block: 16 bytes, the same on every machine.

    A digest depends on the model, the salt, and all tokens up to the end of its block. Where any of
    them differs, so does the digest: the model "ab" with the salt "c" is not "a" with "bc", and the
    tokens 1, 23 are not 12, 3.

    Args:
        token_ids: From 0 to 2^31 - 1 each; those behind the last full block do not matter.
        block_size: Tokens of a block.
        model: Any text.
        salt: Any text; may be empty.
    """
    raise NotImplementedError
