"""Counts requests and their tokens for the API key of their client."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from router.access.caller import Caller
from router.access.limits import Limits
from router.request.progress import Progress
from router.types.engine_state import ModelInfo

_UNCOUNTED: AbstractContextManager[None] = nullcontext()


def admitted(caller: Caller | None, num_requests: int = 1) -> AbstractContextManager[None]:
    """Returns what counts requests while its block runs; nothing for a client without a key.

    Raises:
        RateLimited: By the block: they are too many.
    """
    return _UNCOUNTED if caller is None else _admitted(caller.limits, num_requests)


@contextmanager
def _admitted(limits: Limits, num_requests: int) -> Iterator[None]:
    limits.enter(num_requests)
    try:
        yield
    finally:
        limits.leave(num_requests)


def metered(
    caller: Caller | None,
    progresses: Sequence[Progress],
    num_prompt_tokens: int,
    max_tokens: int | None,
    model: ModelInfo,
) -> AbstractContextManager[None]:
    """Returns what takes the tokens of requests, and gives back those that its block did not use.

    Args:
        caller: Who asks; nothing is counted for a client without a key.
        progresses: The continuations of one prompt.
        num_prompt_tokens: Its length.
        max_tokens: What each may generate at most, or None.
        model: Bounds each if there is no maximum.

    Raises:
        RateLimited: By the block: there are too few tokens left.
    """
    if caller is None:
        return _UNCOUNTED
    most = model.max_sequence_len if max_tokens is None else num_prompt_tokens + max_tokens
    return _metered(caller.limits, progresses, num_prompt_tokens, most, max_tokens is not None)


@contextmanager
def _metered(
    limits: Limits,
    progresses: Sequence[Progress],
    num_prompt_tokens: int,
    most: int,
    is_exact: bool,
) -> Iterator[None]:
    num_reserved = limits.reserve(len(progresses) * most, is_exact=is_exact)
    try:
        yield
    finally:
        # A prompt that no engine has started costs nothing.
        num_started = sum(not progress.num_queued_tokens for progress in progresses)
        num_generated = sum(progress.num_tokens for progress in progresses)
        limits.settle(num_reserved, num_started * num_prompt_tokens, num_generated)
