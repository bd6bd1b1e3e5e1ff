"""The tokenizers of all models, each loaded once, and the few threads that run them."""

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple

from router.chat_template import TemplateSettings
from router.errors import NoTokenizer
from router.tokenizer import Tokenizer
from router.types import ModelInfo

_MAX_LOADED = 8
"""Tokenizers kept; a fleet has one per model, and during an update of it two."""

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_logger = logging.getLogger(__name__)


class TokenizerPool:
    """Loads each tokenizer once and runs all of them in a few threads.

    The number of callers that wait for a thread is bounded by the requests under way, and one that
    is cancelled leaves nothing behind.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[Mapping[str, bytes]]],
        num_threads: int,
        settings: TemplateSettings | None = None,
    ) -> None:
        """Starts no thread yet.

        Args:
            fetch: Returns the tokenizer files of a model from one of its engines.
            num_threads: Tokenizations at once.
            settings: What each chat template may take; None means the defaults.
        """
        self._fetch = fetch
        self._settings = settings or TemplateSettings()
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
        for tokenizer in self._loaded.values():
            if isinstance(tokenizer, Tokenizer):
                tokenizer.chat_template.close()

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
                _, dropped = self._loaded.popitem(last=False)
                if isinstance(dropped, Tokenizer):
                    dropped.chat_template.retire()
        self._loaded.move_to_end(key)
        found = self._loaded[key]
        if isinstance(found, str):
            raise NoTokenizer(f"model {model.name!r}: {found}", {"model": model.name})
        return found

    async def _load(self, model: ModelInfo) -> Tokenizer | str:
        files = await self._fetch(model.name)
        try:
            settings = dataclasses.replace(self._settings, model=model.name)
            tokenizer = await self.run(Tokenizer.from_files, files, settings)
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
        try:
            await tokenizer.chat_template.start()
        except BaseException:
            tokenizer.chat_template.close()
            raise
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
