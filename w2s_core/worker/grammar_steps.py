"""What jobs with a grammar need of each turn: a beginning, their masks, and an end where the grammar is too much."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from w2s_core.pool.messages import JobFailed
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.tasks import RowState, SampleTask

_log = logging.getLogger(__name__)
_PAUSE_S = 0.01  # between two looks for orders, where all there is to do is to wait


def start_ready_grammars(tasks: Sequence[SampleTask], *, nothing_else: bool) -> list[JobFailed]:
    """Jobs whose grammar has come can begin; what is returned cannot. Waits a little if there is `nothing_else` to
    do."""
    waiting = {task: task.beginning for task in tasks if task.beginning is not None}
    if nothing_else and waiting and len(waiting) == len(tasks):
        wait(waiting.values(), _PAUSE_S, FIRST_COMPLETED)
    failed: list[JobFailed] = []
    for task in waiting:
        try:
            task.enter_grammar()
        except Exception as error:  # its tokenizer cannot be read, or a bug: no reason to take others with it
            _log.exception("a grammar could not be had")
            failed.append(JobFailed(task.job.id, str(error)))
    return failed


def start_masks(grammars: GrammarEngine | None, sampling: Sequence[tuple[SampleTask, RowState]]) -> Future[None] | None:
    """Begins to compute what their grammars allow these rows; None where none has one."""
    places = [row.adjustment.grammar for _, row in sampling if row.adjustment and row.adjustment.grammar]
    if not places:
        return None
    assert grammars is not None
    return grammars.masks(places)


def refused(sampling: Sequence[tuple[SampleTask, RowState]]) -> list[JobFailed]:
    """Jobs whose grammar has become more than the library can do, or left nothing that could come next."""
    found: dict[int, JobFailed] = {}
    for task, row in sampling:
        grammar = task.job.sampling.grammar
        place = row.adjustment.grammar if row.adjustment else None
        if grammar is not None and place is not None and place.problem is not None:
            message = f"Cannot be followed any further: {place.problem}"
            found[task.job.id] = JobFailed(task.job.id, message, field=grammar.field)
    return list(found.values())
