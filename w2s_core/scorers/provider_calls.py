"""A session's calls to a provider: a task for each answer, cancelled when the answer is pruned or the session ends."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

A = TypeVar("A", bound=Hashable)  # an answer, as it is sent
R = TypeVar("R")  # what a call returns


class ProviderCalls(Generic[A, R]):
    """The task of each answer; one call may be for several. A session that derives from this class starts the tasks."""

    def __init__(self) -> None:
        self._tasks: Mapping[A, asyncio.Task[R]] = {}
        self._leaving: set[asyncio.Task[R]] = set()  # cancelled, and still closing their connections

    def cancel(self) -> None:
        """Ends all calls; `aclose` waits until they have ended."""
        self._replace({})

    async def aclose(self) -> None:
        """Ends all calls, and waits until they have ended."""
        self.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def _task(self, answer: A) -> asyncio.Task[R] | None:
        """The answer's task, running or done; None if it has none that has not failed."""
        task = self._tasks.get(answer)
        return None if task is None or _failed(task) else task

    def _replace(self, tasks: Mapping[A, asyncio.Task[R]]) -> None:
        """Goes on with these tasks, and cancels those that are not among them."""
        dropped, self._tasks = set(self._tasks.values()) - set(tasks.values()), tasks
        for task in dropped:
            if not _failed(task) and task.cancel():
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)


def _failed(task: asyncio.Task[R]) -> bool:
    """Whether the task has failed. Retrieves its error, so that asyncio does not log it."""
    return task.done() and (task.cancelled() or task.exception() is not None)
