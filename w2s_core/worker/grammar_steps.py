"""The scheduler's grammar work in each step: start tasks whose grammar is compiled, start masks, report failures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from w2s_core.pool.messages import JobFailed
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.tasks import RowState, SampleTask

_log = logging.getLogger(__name__)
# longest wait for a grammar before the worker reads commands again, if it has nothing else to run
_MAX_WAIT_S = 0.01


def start_ready_grammars(tasks: Sequence[SampleTask], *, idle: bool) -> list[JobFailed]:
    """Starts the tasks whose grammar has been compiled. Returns the failure of those whose grammar cannot be.

    Waits a little for the first grammar if the worker is `idle`: nothing else could run in its last step.
    """
    waiting = {task: task.compiling for task in tasks if task.compiling is not None}
    if idle and waiting:
        wait(waiting.values(), _MAX_WAIT_S, FIRST_COMPLETED)
    failed: list[JobFailed] = []
    for task in waiting:
        try:
            task.start_grammar()
        except Exception as error:  # an unreadable tokenizer, or a bug: it must not take other tasks with it
            _log.exception("a grammar could not be compiled")
            failed.append(JobFailed(task.job.id, type(error).__name__))
    return failed


def start_masks(grammars: GrammarEngine | None, rows: Sequence[tuple[SampleTask, RowState]]) -> Future[None] | None:
    """Starts to compute the masks of the rows that have a grammar; None if no row has one."""
    states = [row.processor.grammar for _, row in rows if row.processor and row.processor.grammar]
    if not states:
        return None
    assert grammars is not None
    return grammars.compute_masks(states)


def failed_grammars(rows: Sequence[tuple[SampleTask, RowState]]) -> list[JobFailed]:
    """The failures of jobs whose grammar became too complex for llguidance or allows no token. One per job."""
    failed: dict[int, JobFailed] = {}
    for task, row in rows:
        grammar = task.job.sampling.grammar
        state = row.processor.grammar if row.processor else None
        if grammar is not None and state is not None and state.error is not None:
            message = f"The grammar cannot be continued: {state.error}"
            failed[task.job.id] = JobFailed(task.job.id, message, field=grammar.field)
    return list(failed.values())
