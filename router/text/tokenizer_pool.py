"""The tokenizers of all models, each loaded once, and the threads that run them."""

import asyncio
import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Mapping
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple
from weakref import WeakSet, WeakValueDictionary

from router.errors import NoTokenizer, RequestError, TokenizerFailed
from router.text.chat_template import TemplateSettings
from router.text.containment import contained
from router.text.threads import Threads
from router.text.tokenizer import Tokenizer
from router.types.engine_state import ModelInfo
from servicekit.garbage import return_free_memory

_MAX_LOADED = 8
"""Tokenizers kept; beyond that, only those that connected engines announce."""
_MAX_LOADS = 4
"""Loads at once, in their own threads, so that a slow load delays no text of other models."""
_SECONDS_PER_LINE = 60.0
"""Seconds between log lines on failed tokenizations; a client may cause any number of them."""

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_logger = logging.getLogger(__name__)


class TokenizerPool:
    """Loads each tokenizer once and runs all of them in a few threads.

    Each tokenizer also has a thread for its chats, so that a slow template delays no other model.
    """

    def __init__(
        self,
        fetch: Callable[[ModelInfo], Awaitable[Mapping[str, bytes]]],
        num_threads: int,
        in_use: Callable[[], Container[str]] = frozenset,
        settings: TemplateSettings | None = None,
    ) -> None:
        """Does not start a thread yet.

        Args:
            fetch: Returns the tokenizer files of a model. They must have the digest that the model
                names, since they are kept for every model that names it.
            num_threads: Concurrent tokenizations of texts and of long chats.
            in_use: Returns the digests of tokenizers that may not be dropped for newer ones.
            settings: The limits of each chat template; None means the defaults.
        """
        self._fetch = fetch
        self._in_use = in_use
        self._settings = settings or TemplateSettings()
        self._threads = Threads(num_threads, "tokenizer")
        self._loaders = Threads(_MAX_LOADS, "tokenizer-load")
        self._loaded: OrderedDict[str, Tokenizer | str] = OrderedDict()
        """By the SHA-256 of the files; a string says why they cannot be used."""
        self._loading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._dropped: WeakSet[Tokenizer] = WeakSet()
        """Dropped tokenizers that requests may still use."""
        self._next_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for threads in (self._threads, self._loaders):
            threads.shut_down()
        for tokenizer in (*self._loaded.values(), *self._dropped):
            if isinstance(tokenizer, Tokenizer):
                tokenizer.close()

    async def get(self, model: ModelInfo) -> Tokenizer:
        """Returns the model's tokenizer; the first caller loads it.

        Raises:
            NoTokenizer: The model has no tokenizer, or an unusable one.
        """
        if not model.tokenizer_sha256:
            raise NoTokenizer(
                f"model {model.name!r} has no tokenizer: send token_ids", {"model": model.name}
            )
        key = model.tokenizer_sha256
        found = self._loaded.get(key)
        if found is None:
            # Other callers wait for the first; if that one is cancelled, the next loads it.
            async with self._loading.setdefault(key, asyncio.Lock()):
                found = self._loaded.get(key)
                if found is None:
                    found = self._loaded[key] = await self._load(model)
                    self._drop_oldest()
        if key in self._loaded:
            self._loaded.move_to_end(key)
        if isinstance(found, str):
            raise NoTokenizer(f"model {model.name!r}: {found}", {"model": model.name})
        return found

    def _drop_oldest(self) -> None:
        in_use = self._in_use()
        # An engine that announces many tokenizers must not displace those of others.
        old = [key for key in self._loaded if key not in in_use]
        for key in old[: max(0, len(self._loaded) - _MAX_LOADED)]:
            dropped = self._loaded.pop(key)
            if isinstance(dropped, Tokenizer):
                dropped.chat_template.retire()
                self._dropped.add(dropped)

    async def _load(self, model: ModelInfo) -> Tokenizer | str:
        files = await self._fetch(model)
        try:
            settings = dataclasses.replace(self._settings, model=model.name)
            tokenizer = await self._loaders.run(contained, _load, files, settings)
        except (NoTokenizer, TokenizerFailed) as error:
            # Kept like a usable one, since the digest names exactly these files: trying again
            # costs a second and gives the same result.
            _logger.error("tokenizer unusable model=%s error=%s", model.name, error)
            return str(error)
        _logger.info(
            "tokenizer loaded model=%s vocabulary=%d byte_level=%s",
            model.name,
            tokenizer.backend.get_vocab_size(),
            tokenizer.token_bytes is not None,
        )
        try:
            await tokenizer.chat_thread.run(tokenizer.chat_template.start)
        except RequestError as error:
            # Chats will get the error; texts and token IDs need no template.
            _logger.warning("chat template not started model=%s error=%s", model.name, error)
        except BaseException:
            tokenizer.close()
            raise
        return tokenizer

    async def run(
        self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Runs a function in one of the threads; drops its result if cancelled.

        Raises:
            TokenizerFailed: The tokenizer library failed, by a panic or otherwise.
        """
        return await self._run_in(self._threads, function, *arguments)

    def run_at_once(
        self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Runs a function here and now; as `run` otherwise."""
        try:
            return contained(function, *arguments)
        except TokenizerFailed as error:
            self._log(error)
            raise

    async def run_chat(
        self,
        tokenizer: Tokenizer,
        function: Callable[[*_Arguments], _Result],
        *arguments: *_Arguments,
    ) -> _Result:
        """Runs a function in the one thread of a tokenizer's chat template, as `run` does."""
        return await self._run_in(tokenizer.chat_thread, function, *arguments)

    async def _run_in(
        self,
        threads: Threads,
        function: Callable[[*_Arguments], _Result],
        *arguments: *_Arguments,
    ) -> _Result:
        try:
            return await threads.run(contained, function, *arguments)
        except TokenizerFailed as error:
            self._log(error)
            raise

    def _log(self, error: TokenizerFailed) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + _SECONDS_PER_LINE
            _logger.error("tokenization failed error=%s", error)


def _load(files: Mapping[str, bytes], settings: TemplateSettings) -> Tokenizer:
    tokenizer = Tokenizer.from_files(files, settings)
    # Some tokenizers load and then fail on every text; find out now.
    tokenizer.decode(tokenizer.encode_text("a"), skip_special_tokens=False)
    # What transformers made to load it is larger than what is left.
    return_free_memory()
    return tokenizer
