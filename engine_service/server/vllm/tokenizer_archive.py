"""The tokenizer's files as the vLLM service sends them: one zip archive."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Iterator

from smg_grpc_proto.generated import common_pb2

from engine_service.server.tokenizer_files import TokenizerFiles
from engine_service.server.vllm.message import Message

_CHUNK_BYTES = 64 * 1024


class TokenizerArchive:
    """An archive that is made when it is first asked for, which takes up to a second."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._content = b""

    async def chunks(self, files: TokenizerFiles) -> Iterator[Message]:
        """Returns the messages that carry the archive; the last one has its SHA-256."""
        async with self._lock:
            if not self._content:
                self._content = await asyncio.to_thread(_zipped, files)
        return _chunks(self._content)


def _zipped(files: TokenizerFiles) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for file in files.files:
            # Without a time, so that equal files make equal archives.
            writer.writestr(
                zipfile.ZipInfo(file.name), file.content, zipfile.ZIP_DEFLATED, compresslevel=1
            )
    return archive.getvalue()


def _chunks(content: bytes) -> Iterator[Message]:
    digest = hashlib.sha256(content).hexdigest()
    for start in range(0, len(content), _CHUNK_BYTES):
        end = start + _CHUNK_BYTES
        yield common_pb2.GetTokenizerChunk(
            data=content[start:end], sha256=digest if end >= len(content) else ""
        )
