"""Two shapes of concurrency that asyncio does not have ready-made; in both, nothing outlives its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")
_DEPTH = 64  # events that may wait for a slow reader before the producers pause


async def gather_all(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs all at once, results in order. The first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(c) for c in coroutines]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def merge(sources: Sequence[AsyncGenerator[T]], *, timeout_s: float | None = None) -> AsyncGenerator[T]:
    """Items of all sources as they come, each source in its own task. The first failure ends all and is raised.

    Raises TimeoutError when the sources have not ended after `timeout_s`. Closing the iterator ends the sources.
    """
    queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue(_DEPTH)

    async def pump(source: AsyncGenerator[T]) -> None:
        async with aclosing(source):
            async for item in source:
                await queue.put((item,))

    async def pump_all() -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await gather_all([pump(source) for source in sources])
        except Exception as failure:  # handed to the reader, whose request it was
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
