"""What names a set of tokenizer files: `tokenizer_sha256` of the engine's GetModelInfo.

Engines announce it and routers compute it again over what they were sent, since they keep a loaded
tokenizer by this name for all engines that announce it.
"""

import hashlib
from collections.abc import Mapping


def tokenizer_digest(files: Mapping[str, bytes]) -> str:
    """Returns the digest of names and contents, 64 hexadecimal digits; "" if there are no files.

    Args:
        files: By name, the SHA-256 of each content, as 32 bytes. Their order does not matter.
    """
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(name.encode() + b"\0" + files[name])
    return whole.hexdigest() if files else ""
