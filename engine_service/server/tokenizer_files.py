"""The tokenizer files that routers fetch from an engine, held in memory."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from engine_service.errors import StartupError
from protos.wire.tokenizer_digest import tokenizer_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """One file."""

    name: str
    content: bytes
    sha256: str
    """64 hexadecimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """All files; none if the model folder holds no tokenizer."""

    files: tuple[TokenizerFile, ...] = ()
    sha256: str = ""
    """Over names and contents, 64 hexadecimal digits; empty when there are no files."""

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        """Reads the files, sorted by name; blocks for as long as the disk takes.

        Raises:
            StartupError: A file cannot be read.
        """
        files = []
        digests = {}
        for path in sorted(paths, key=lambda path: path.name):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise StartupError(f"{path}: cannot be read: {error.strerror}") from error
            digest = hashlib.sha256(content)
            digests[path.name] = digest.digest()
            files.append(TokenizerFile(name=path.name, content=content, sha256=digest.hexdigest()))
        return cls(files=tuple(files), sha256=tokenizer_digest(digests))
