"""A fault in the tokenizers library ends one call, whatever exception it raises.

A panic of its Rust code arrives as a BaseException: `except Exception` lets it pass, and it would
end the task in which it occurs.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from router.errors import TokenizerFailed
from router.text.token_budget import Abandoned
from servicekit.errors import ServiceError

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_NO_FAULTS = (ServiceError, Abandoned, asyncio.CancelledError, KeyboardInterrupt, SystemExit)


def contained(function: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
    """Calls a function that may use the library.

    Raises:
        TokenizerFailed: The library failed.
    """
    try:
        return function(*arguments)
    except _NO_FAULTS:
        raise
    except BaseException as error:
        raise TokenizerFailed(f"the tokenizer failed: {error!r:.500}") from error
