"""The tokenizer files of a model, from the first of its engines that sends them."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from protos.wire.status import Reason, error_status
from router.errors import DOMAIN, EngineError, EngineLost
from router.types.engine_state import ModelInfo

_HEDGE_SECONDS = 2.0
"""After this time without an answer of one engine, another one is asked as well."""
_REST_SECONDS = 10.0
"""How long an engine is not asked again if it sent no files, or not the ones it announced."""

_Answer = dict[str, bytes] | EngineError

_logger = logging.getLogger(__name__)


class Holder(Protocol):
    """An engine that has tokenizer files: the client of one, or a test's."""

    async def get_tokenizer(self, sha256: str) -> dict[str, bytes]:
        """Returns the files, which together have this digest.

        Raises:
            EngineError: It did not send them.
        """


class TokenizerSource:
    """Asks engines for tokenizer files; one that hangs or sends wrong files delays no other."""

    def __init__(self, holders: Callable[[str], Mapping[str, Holder]]) -> None:
        """Does not ask an engine yet.

        Args:
            holders: Returns the connected engines that announce a digest, by address.
        """
        self._holders = holders
        self._resting: dict[str, tuple[float, EngineError]] = {}
        """Until when an engine is not asked, and why, by address."""
        self._late: set[str] = set()
        """Engines that did not answer in time when last asked; others are asked first."""

    async def fetch(self, model: ModelInfo) -> dict[str, bytes]:
        """Returns the files that have the model's digest, by name.

        Engines are asked in turn: the next one when an engine failed or is late.

        Raises:
            EngineError: The last engine's error; ENGINE_FAILED if there is no engine.
        """
        asked: dict[asyncio.Task[_Answer], str] = {}
        pending: set[asyncio.Task[_Answer]] = set()
        answer: _Answer = self._why_none(model)
        async with asyncio.TaskGroup() as tasks:
            while not isinstance(answer, dict):
                address = self._next(model, asked.values())
                if address is not None:
                    task = tasks.create_task(self._ask(address, model))
                    asked[task] = address
                    pending.add(task)
                elif not pending:
                    break
                done, pending = await asyncio.wait(
                    pending, timeout=_HEDGE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if not isinstance(answer, dict):
                        answer = task.result()
                if not done:
                    self._late.update(asked[task] for task in pending)
            for task in pending:
                task.cancel()
        if isinstance(answer, EngineError):
            raise answer
        return answer

    def _next(self, model: ModelInfo, asked: Iterable[str]) -> str | None:
        now = asyncio.get_running_loop().time()
        self._resting = {a: rest for a, rest in self._resting.items() if rest[0] > now}
        addresses = self._holders(model.tokenizer_sha256).keys() - self._resting.keys() - set(asked)
        return min(addresses, key=lambda a: (a in self._late, a), default=None)

    def _why_none(self, model: ModelInfo) -> EngineError:
        """Returns the error for the case that no engine can be asked."""
        for address in self._holders(model.tokenizer_sha256):
            if address in self._resting:
                return self._resting[address][1]
        message = f'no engine that has the tokenizer of model "{model.name:.128}" is connected now'
        status = error_status(
            Reason.ENGINE_FAILED, message, domain=DOMAIN, metadata={"model": model.name}
        )
        return EngineError(status)

    async def _ask(self, address: str, model: ModelInfo) -> _Answer:
        holder = self._holders(model.tokenizer_sha256)[address]
        try:
            files = await holder.get_tokenizer(model.tokenizer_sha256)
        except EngineLost as error:
            return error
        except EngineError as error:
            refusal = _of_engine(address, error)
        # Whatever goes wrong with one engine's answer, another engine may have a good one.
        except Exception as error:
            _logger.exception("tokenizer transfer failed engine=%s", address)
            message = f"tokenizer files of engine {address}: {error!r:.200}"
            refusal = EngineError(error_status(Reason.INTERNAL, message, domain=DOMAIN))
        else:
            self._late.discard(address)
            return files
        now = asyncio.get_running_loop().time()
        self._resting[address] = (now + _REST_SECONDS, refusal)
        _logger.warning(
            "tokenizer not received engine=%s model=%s rest_seconds=%g error=%s",
            address,
            model.name,
            _REST_SECONDS,
            refusal,
        )
        return refusal


def _of_engine(address: str, error: EngineError) -> EngineError:
    """Returns an engine's error as one that clients do not mistake for the answer to a request."""
    if error.status.domain == DOMAIN or error.status.reason == Reason.NO_TOKENIZER:
        return error
    message = f"engine {address} did not send its tokenizer: {error}"
    return EngineError(error_status(Reason.ENGINE_FAILED, message, domain=DOMAIN))
