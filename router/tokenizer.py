"""Text and conversations to token IDs, with the tokenizer that the model's engine holds.

Text becomes `tokenizer(text).input_ids` of transformers: special tokens written in the text are
recognised, and those are added that the tokenizer itself adds (Qwen's adds none). A conversation
becomes `apply_chat_template(messages, add_generation_prompt=True)`: special tokens are recognised
in what people say, too, and none are added to what the template lays out.
"""

import asyncio
import logging
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple

import tokenizers

# The router needs no torch, which transformers warns about.
logging.getLogger("transformers").addFilter(
    lambda record: "PyTorch was not found" not in record.getMessage()
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

from protos.wire.reason import Reason  # noqa: E402
from router.errors import InvalidRequest, NoTokenizer, RequestError  # noqa: E402
from router.tokenization_cache import TokenizationCache  # noqa: E402
from router.types import ChatMessage, ModelInfo  # noqa: E402

_MAX_LOADED = 8
"""Tokenizers kept; a fleet has one per model, and during an update of it two."""

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_logger = logging.getLogger(__name__)


class TokenBytes(dict[int, bytes]):
    """Bytes of each token of a byte-level vocabulary, special tokens as b""; filled as used."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend
        self._special_ids = {
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        }

    def __missing__(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            value = b""
        else:
            try:
                value = bytes(_BYTE_OF_CHARACTER[character] for character in token)
            except KeyError:
                # An added token holds text as it is.
                value = token.encode()
        self[token_id] = value
        return value


def _byte_of_character() -> dict[str, int]:
    # Byte-level BPE (GPT-2) writes each byte as one visible character: printable Latin-1 as
    # itself, the others in order from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _byte_of_character()


class Tokenizer:
    """One model's tokenizer and chat template. Its methods block, and are safe in threads.

    Attributes:
        backend: The tokenizer proper.
        token_bytes: Bytes of each token, or None when the vocabulary is not byte-level.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        # The wrapper keeps vocabulary and merges a second time as Python objects, 60 MB of them
        # for Qwen3. Only its template is wanted, which an empty tokenizer renders as well.
        self._template = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
            chat_template=tokenizer.chat_template,
            **tokenizer.special_tokens_map,
        )
        # A tokenizer.json may hold settings of its training; transformers resets them per call.
        self.backend.no_truncation()
        self.backend.no_padding()
        is_byte_level = type(self.backend.decoder).__name__ == "ByteLevel"
        self.token_bytes = TokenBytes(self.backend) if is_byte_level else None
        special_tokens = [
            token.content
            for token in self.backend.get_added_tokens_decoder().values()
            if token.special
        ]
        self._conversations = TokenizationCache(
            partial(self._encode, add_special_tokens=False), special_tokens
        )

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Loads a tokenizer from the contents of its files, by name.

        Raises:
            NoTokenizer: The files hold none that transformers can load without foreign code.
            RequestError: There is no temporary folder to put them in.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="pagestream-tokenizer-") as folder:
                return cls._from_folder(files, Path(folder))
        except OSError as error:
            num_bytes = sum(map(len, files.values()))
            raise RequestError(
                f"the tokenizer's {num_bytes} bytes cannot be put into a temporary folder "
                f"({error}); set TMPDIR to one that has room"
            ) from error

    @classmethod
    def _from_folder(cls, files: Mapping[str, bytes], folder: Path) -> Self:
        for name, content in files.items():
            if Path(name).name != name:
                raise NoTokenizer(f"tokenizer file {name!r} is not a plain file name")
            (folder / name).write_bytes(content)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if not isinstance(tokenizer, PreTrainedTokenizerFast):
                raise TypeError(f"{type(tokenizer).__name__} has no fast backend")
            return cls(tokenizer)
        # Whatever is wrong with files from elsewhere, the router goes on.
        except Exception as error:
            message = f"the files {sorted(files)} hold no usable tokenizer: {error!r:.500}"
            raise NoTokenizer(message) from error

    def encode_text(self, text: str) -> "array[int]":
        """Returns the token IDs of a text, typecode "i"."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> "array[int]":
        """Returns the token IDs of a conversation up to where the assistant speaks, typecode "i".

        Raises:
            InvalidRequest: There is no chat template, or it raises.
        """
        if not self._template.chat_template:
            raise InvalidRequest(
                "chat cannot be used: the model has no chat template; send text",
                {"field": "chat"},
                reason=Reason.BAD_CHAT,
            )
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = str(
                self._template.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=True
                )
            )
        # A template is a program: it may raise anything.
        except Exception as error:
            roles = ", ".join(message.role for message in messages[:16])
            raise InvalidRequest(
                f"chat.messages with roles {roles}: the model's chat template refuses them: "
                f"{error!s:.500}",
                {"field": "chat.messages", "value": roles},
                reason=Reason.BAD_CHAT,
            ) from error
        return self._conversations.encode(text)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Returns the text of token IDs; incomplete characters become U+FFFD."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def _encode(self, text: str, *, add_special_tokens: bool) -> "array[int]":
        # Of a single text, `encode` keeps the interpreter to itself, seconds for one of 4 MB,
        # and records what nobody reads: the place of each token in the text.
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return array("i", encoding.ids)


class TokenizerPool:
    """Loads each tokenizer once and runs all of them in a few threads.

    The number of callers that wait for a thread is bounded by the requests under way, and one that
    is cancelled leaves nothing behind.
    """

    def __init__(
        self, fetch: Callable[[str], Awaitable[Mapping[str, bytes]]], num_threads: int
    ) -> None:
        """Starts no thread yet.

        Args:
            fetch: Returns the tokenizer files of a model from one of its engines.
            num_threads: Tokenizations at once.
        """
        self._fetch = fetch
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")
        # The queue of the threads keeps a cancelled call, and its text, until one of them is free.
        self._free_threads = asyncio.Semaphore(num_threads)
        self._loaded: OrderedDict[str, Tokenizer | str] = OrderedDict()
        """By SHA-256 of its files; a text says why it cannot be used."""
        self._loading: dict[str, asyncio.Lock] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, model: ModelInfo) -> Tokenizer:
        """Returns the model's tokenizer, loaded by the first that asks.

        Raises:
            NoTokenizer: The model has none, or none that can be used.
        """
        if not model.tokenizer_sha256:
            raise NoTokenizer(
                f"model {model.name!r} has no tokenizer: send token_ids", {"model": model.name}
            )
        key = model.tokenizer_sha256
        if key not in self._loaded:
            # Others wait for the first; if that one is cancelled, the next loads.
            async with self._loading.setdefault(key, asyncio.Lock()):
                if key not in self._loaded:
                    self._loaded[key] = await self._load(model)
            self._loading.pop(key, None)
            if len(self._loaded) > _MAX_LOADED:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        found = self._loaded[key]
        if isinstance(found, str):
            raise NoTokenizer(f"model {model.name!r}: {found}", {"model": model.name})
        return found

    async def _load(self, model: ModelInfo) -> Tokenizer | str:
        files = await self._fetch(model.name)
        try:
            tokenizer = await self.run(Tokenizer.from_files, files)
        except NoTokenizer as error:
            # Kept like the others: trying again costs a second and yields the same.
            _logger.error("tokenizer unusable model=%s error=%s", model.name, error)
            return str(error)
        _logger.info(
            "tokenizer loaded model=%s vocabulary=%d byte_level=%s",
            model.name,
            tokenizer.backend.get_vocab_size(),
            tokenizer.token_bytes is not None,
        )
        return tokenizer

    async def run(
        self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Runs a function in one of the threads; if cancelled, its result is dropped."""
        await self._free_threads.acquire()
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._threads, function, *arguments)
        except BaseException:
            self._free_threads.release()
            raise
        # A thread cannot be interrupted: it is free when its work is done, not when nobody waits.
        future.add_done_callback(lambda _: self._free_threads.release())
        return await asyncio.shield(future)
