"""The digest that identifies a set of tokenizer files: `tokenizer_sha256` of GetModelInfo.

Engines announce it. Routers recompute it over the files received, since they share one loaded
tokenizer among all engines that announce the same digest.
"""

import hashlib
from collections.abc import Mapping


def tokenizer_digest(files: Mapping[str, bytes]) -> str:
    """Returns the digest of names and contents, 64 hexadecimal digits; "" if there are no files.

    Args:
        files: The SHA-256 of each content (32 bytes), by name. The order does not matter.
    """
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(name.encode() + b"\0" + files[name])
    return whole.hexdigest() if files else ""
