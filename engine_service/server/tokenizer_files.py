"""The tokenizer files that routers fetch from an engine, held in memory."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from engine_service.errors import StartupError
from engine_service.models.end_tokens import MAX_TOKENIZER_FILE_BYTES
from engine_service.models.plain_file import read_own_file
from protos.wire.tokenizer_digest import tokenizer_digest

_MAX_BYTES = 128 << 20


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

    def content(self, name: str) -> bytes | None:
        """Returns the content of the file with that name, or None."""
        return next((file.content for file in self.files if file.name == name), None)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        """Reads the files, sorted by name; blocks for as long as the disk takes.

        Raises:
            StartupError: A file cannot be read, is too large, or lies outside its folder. (Any
                client may fetch these files.)
        """
        files = []
        digests = {}
        num_bytes = 0
        for path in sorted(paths, key=lambda path: path.name):
            content = read_own_file(path, MAX_TOKENIZER_FILE_BYTES)
            num_bytes += len(content)
            if num_bytes > _MAX_BYTES:
                raise StartupError(
                    f"{path}: with this file, the tokenizer files have {num_bytes} bytes together, "
                    f"over the limit of {_MAX_BYTES}"
                )
            digest = hashlib.sha256(content)
            digests[path.name] = digest.digest()
            files.append(TokenizerFile(name=path.name, content=content, sha256=digest.hexdigest()))
        return cls(files=tuple(files), sha256=tokenizer_digest(digests))
