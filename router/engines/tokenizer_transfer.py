"""The tokenizer files of one engine during transfer: first bounded, then stored, then checked."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from protos.pagestream.engine.v1 import engine_pb2
from protos.wire.status import Reason, error_status
from protos.wire.tokenizer_digest import tokenizer_digest
from router.errors import DOMAIN, EngineError

MAX_BYTES = 256 * 1024 * 1024
"""The most bytes of all files, by their headers, so that no more is ever kept."""
MAX_FILES = 64
MAX_NAME_BYTES = 255
_MAX_EMPTY_MESSAGES = 64
"""Messages with neither a file nor content; a newer engine may send some."""


@dataclass(slots=True, kw_only=True)
class _File:
    header: engine_pb2.TokenizerFile
    content: bytearray = field(default_factory=bytearray)
    # Hashed per chunk: hashing a whole file at once would block the event loop.
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def is_whole(self) -> bool:
        return (
            len(self.content) == self.header.size_bytes
            and self.digest.hexdigest() == self.header.sha256
        )


async def read_files(
    address: str,
    call: AsyncIterator[engine_pb2.GetTokenizerResponse],
    *,
    expected_sha256: str,
    silence: float,
) -> dict[str, bytes]:
    """Returns the files of a GetTokenizer call by name.

    Args:
        address: "host:port" of the engine, for errors.
        call: The response stream.
        expected_sha256: The digest of all files together, as announced by the engine.
        silence: The longest wait for one message, in seconds.

    Raises:
        EngineError: The files do not match the announcement or exceed a bound (INTERNAL), or
            nothing came for too long (ENGINE_FAILED).
    """
    transfer = _Transfer(address)
    messages = aiter(call)
    while True:
        try:
            async with asyncio.timeout(silence):
                message = await anext(messages)
        except StopAsyncIteration:
            return transfer.files(expected_sha256)
        except TimeoutError as error:
            raise transfer.fault(
                "all", f"stopped coming for {silence:g} s", Reason.ENGINE_FAILED
            ) from error
        if message is None:  # it could not be parsed
            raise transfer.fault("all", "cannot be read: a message could not be parsed")
        transfer.take(message)


class _Transfer:
    """The files received so far."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._files: dict[str, _File] = {}
        self._latest: _File | None = None
        self._num_announced_bytes = 0
        self._num_empty_messages = 0

    def take(self, message: engine_pb2.GetTokenizerResponse) -> None:
        if message.HasField("file"):
            self._begin(message.file)
        elif message.chunk:
            self._continue(message.chunk)
        else:
            self._num_empty_messages += 1
            if self._num_empty_messages > _MAX_EMPTY_MESSAGES:
                raise self.fault("all", f"came with over {_MAX_EMPTY_MESSAGES} empty messages")

    def files(self, expected_sha256: str) -> dict[str, bytes]:
        self._end_latest()
        digest = tokenizer_digest({n: file.digest.digest() for n, file in self._files.items()})
        if digest != expected_sha256:
            raise self.fault(
                "all", f'have the digest "{digest}"; announced was "{expected_sha256:.64}"'
            )
        return {name: bytes(file.content) for name, file in self._files.items()}

    def fault(self, name: str, fault: str, reason: Reason = Reason.INTERNAL) -> EngineError:
        message = f"tokenizer files of engine {self._address}: {name} {fault}"
        return EngineError(error_status(reason, message, domain=DOMAIN))

    def _begin(self, header: engine_pb2.TokenizerFile) -> None:
        self._end_latest()
        name, shown = header.name, f"{header.name[:MAX_NAME_BYTES]!r}"
        if not name or name.startswith(".") or set(name) & set("/\\"):
            raise self.fault(shown, "has a name that is not a plain file name")
        if len(name.encode()) > MAX_NAME_BYTES or not name.isprintable():
            raise self.fault(shown, f"has a name of over {MAX_NAME_BYTES} bytes or not printable")
        if name in self._files:
            raise self.fault(shown, "was sent twice")
        if len(self._files) >= MAX_FILES:
            raise self.fault("all", f"are more than {MAX_FILES}")
        self._num_announced_bytes += header.size_bytes
        if header.size_bytes < 0 or self._num_announced_bytes > MAX_BYTES:
            raise self.fault(
                shown,
                f"is announced with {header.size_bytes} bytes; all files may have {MAX_BYTES}",
            )
        self._latest = self._files[name] = _File(header=header)

    def _continue(self, chunk: bytes) -> None:
        file = self._latest
        if file is None:
            raise self.fault("all", "started without a header")
        if len(file.content) + len(chunk) > file.header.size_bytes:
            raise self._mismatch(file)
        file.content += chunk
        file.digest.update(chunk)

    def _end_latest(self) -> None:
        if self._latest is not None and not self._latest.is_whole:
            raise self._mismatch(self._latest)

    def _mismatch(self, file: _File) -> EngineError:
        return self.fault(file.header.name, "does not match its announced size and SHA-256")
