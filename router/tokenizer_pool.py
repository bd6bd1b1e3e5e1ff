"""The tokenizers of all models, each loaded once, and the few threads that run them."""

import asyncio
import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from router.chat_template import TemplateSettings
from router.containment import contained
from router.errors import NoTokenizer, TokenizerFailed
from router.event_loop import let_loop_go_first
from router.tokenizer import Tokenizer
from router.types import ModelInfo

_MAX_LOADED = 8
"""Tokenizers kept, and beyond that only what connected engines announce."""
_MAX_LOADS = 4
"""Loads at once, in threads of their own: a slow one keeps no text of other models waiting."""
_SECONDS_PER_LINE = 60.0
"""Between log lines about failed tokenizations, of which a client may cause any number."""

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
        fetch: Callable[[ModelInfo], Awaitable[Mapping[str, bytes]]],
        num_threads: int,
        in_use: Callable[[], Container[str]] = frozenset,
        settings: TemplateSettings | None = None,
    ) -> None:
        """Starts no thread yet.

        Args:
            fetch: Returns the tokenizer files of a model, which must have the digest that the model
                names: they are kept for every model that names it.
            num_threads: Tokenizations at once.
            in_use: Returns the digests of tokenizers that are not dropped for newer ones.
            settings: What each chat template may take; None means the defaults.
        """
        self._fetch = fetch
        self._in_use = in_use
        self._settings = settings or TemplateSettings()
        self._threads = ThreadPoolExecutor(
            num_threads, thread_name_prefix="tokenizer", initializer=let_loop_go_first
        )
        self._loaders = ThreadPoolExecutor(
            _MAX_LOADS, thread_name_prefix="tokenizer-load", initializer=let_loop_go_first
        )
        # The queue of the threads keeps a cancelled call, and its text, until one of them is free.
        self._free_threads = asyncio.Semaphore(num_threads)
        self._loaded: OrderedDict[str, Tokenizer | str] = OrderedDict()
        """By SHA-256 of its files; a text says why it cannot be used."""
        self._loading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
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
            threads.shutdown(wait=False, cancel_futures=True)
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
        found = self._loaded.get(key)
        if found is None:
            # Others wait for the first; if that one is cancelled, the next loads.
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
        # An engine that announces one tokenizer after the other must not cost others theirs.
        old = [key for key in self._loaded if key not in in_use]
        for key in old[: max(0, len(self._loaded) - _MAX_LOADED)]:
            dropped = self._loaded.pop(key)
            if isinstance(dropped, Tokenizer):
                dropped.chat_template.retire()

    async def _load(self, model: ModelInfo) -> Tokenizer | str:
        files = await self._fetch(model)
        loop = asyncio.get_running_loop()
        try:
            settings = dataclasses.replace(self._settings, model=model.name)
            tokenizer = await loop.run_in_executor(self._loaders, contained, _load, files, settings)
        except (NoTokenizer, TokenizerFailed) as error:
            # Kept like the others, since the files are those that the digest names: trying again
            # costs a second and yields the same.
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
        """Runs a function in one of the threads; if cancelled, its result is dropped.

        Raises:
            TokenizerFailed: The tokenizer's library failed, by a panic or otherwise.
        """
        await self._free_threads.acquire()
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._threads, contained, function, *arguments)
        except BaseException:
            self._free_threads.release()
            raise
        # A thread cannot be interrupted: it is free when its work is done, not when nobody waits.
        future.add_done_callback(lambda _: self._free_threads.release())
        try:
            return await asyncio.shield(future)
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
    # There are some that load and then fail on every text: that is better known now.
    tokenizer.decode(tokenizer.encode_text("a"), skip_special_tokens=False)
    return tokenizer
