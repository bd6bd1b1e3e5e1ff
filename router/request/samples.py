"""Several continuations of one prompt in one stream."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Item(Generic[_T]):
    value: _T


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def merged(streams: Sequence[AsyncGenerator[_T, None]]) -> AsyncGenerator[_T, None]:
    """Yields what several streams yield, as it comes, in turns if all have something.

    A slow reader holds all streams: each waits until its last item was taken. The first error ends
    all of them. Closing the generator closes them, and waits until they are closed.

    Raises:
        BaseException: The first error of a stream.
    """
    queue: asyncio.Queue[_Item[_T] | _End] = asyncio.Queue(maxsize=1)
    leaving: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(_read(stream, queue)) for stream in streams]
        try:
            num_left = len(streams)
            while num_left:
                item = await queue.get()
                if isinstance(item, _Item):
                    yield item.value
                elif item.error is None:
                    num_left -= 1
                else:
                    leaving = item.error
                    break
        # A group makes another error of what leaves it, even of the end of this generator.
        except BaseException as error:
            leaving = error
        for reader in readers:
            reader.cancel()
    if leaving is not None:
        try:
            raise leaving
        finally:
            # Otherwise the error and this frame would refer to each other.
            del leaving


async def _read(stream: AsyncGenerator[_T, None], queue: "asyncio.Queue[_Item[_T] | _End]") -> None:
    error: BaseException | None = None
    try:
        async with aclosing(stream):
            async for value in stream:
                await queue.put(_Item(value))
    except asyncio.CancelledError:
        raise
    # Raised here, it would cancel the task that reads, whatever that does at the moment.
    except BaseException as caught:
        error = caught
    await queue.put(_End(error))
