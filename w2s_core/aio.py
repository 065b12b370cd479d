"""asyncio helpers: `gather_all`, `bounded` and `merge`. All are structured, so no task outlives its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_QUEUE_SIZE = 64  # items that wait for a slow reader before the sources are paused (back-pressure)


async def gather_all(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Like `asyncio.gather`: runs all concurrently and returns their results in order.

    The first failure cancels the others and is raised itself, not in an ExceptionGroup.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(c) for c in coroutines]
    except BaseExceptionGroup as failures:
        error = failures.exceptions[0]
        raise error from error.__cause__  # which `from None` would remove
    return [task.result() for task in tasks]


async def bounded(function: Callable[[T], Awaitable[R]], items: Sequence[T], limit: int) -> list[R]:
    """Applies `function` to all items, at most `limit` at a time; results in order. The first failure cancels all."""
    semaphore = asyncio.Semaphore(limit)

    async def limited(item: T) -> R:
        async with semaphore:
            return await function(item)

    return await gather_all([limited(item) for item in items])


async def merge(sources: Sequence[AsyncGenerator[T]], *, timeout_s: float | None = None) -> AsyncGenerator[T]:
    """Merges asynchronous iterators: yields the items of all sources as they arrive. Each source runs in its own task.

    The first failure closes all sources and is raised. Raises TimeoutError if the sources have not ended after
    `timeout_s` seconds. Closing the merged iterator closes the sources.
    """
    queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue(_QUEUE_SIZE)

    async def pump(source: AsyncGenerator[T]) -> None:
        async with aclosing(source):
            async for item in source:
                await queue.put((item,))

    async def pump_all() -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await gather_all([pump(source) for source in sources])
        except Exception as failure:  # raised in the reader, below
            await queue.put(failure)
        else:
            await queue.put(None)

    task = asyncio.create_task(pump_all())
    try:
        while (entry := await queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
