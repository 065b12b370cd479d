"""Generates the answers of an experiment that its folder does not have yet, concurrently, with the time left shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tqdm import tqdm

from w2s_core.aio import gather_all
from w2s_core.errors import W2SError
from w2s_core.evaluation.experiment import Task
from w2s_core.evaluation.folder import AnswerFolder
from w2s_core.evaluation.records import AnswerRecord, LeftOut

Ask = Callable[[Task], Awaitable[AnswerRecord | LeftOut]]
_BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left"


async def generate(tasks: Sequence[Task], folder: AnswerFolder, ask: Ask, concurrency: int) -> None:
    """Asks for every answer that is missing, `concurrency` at a time, and adds each to the folder when it comes.

    The first failure cancels the others; what was answered before is kept, and its message says so.
    """
    missing = folder.missing(tasks)
    queue = iter(missing)
    done = len(tasks) - len(missing)
    with tqdm(total=_cost(tasks), initial=_cost(tasks) - _cost(missing), bar_format=_BAR) as bar:

        async def work() -> None:
            nonlocal done
            for task in queue:
                folder.add(await ask(task))
                done += 1
                bar.set_description(f"{done} of {len(tasks)} answers", refresh=False)
                bar.update(task.condition.cost)

        try:
            await gather_all([work() for _ in range(min(concurrency, len(missing)))])
        except W2SError as error:
            kept = f" {done} of {len(tasks)} answers are in {folder.path}; the same command goes on from there."
            raise type(error)(f"{error}{kept if done else ''}") from None


def _cost(tasks: Sequence[Task]) -> int:
    return sum(task.condition.cost for task in tasks)
