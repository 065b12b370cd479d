"""Model group: the models of one base, whose forwards of a step are one.

A base and its LoRA adapters, or adapters of one base, share their weights, so that what each has to run fits one batch.
Each has its own scheduler and KV cache. A model that shares its weights with no other is a group by itself.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import torch

from w2s_core.pool.messages import JobFailed, JobOutcome
from w2s_core.types import StepKind
from w2s_core.worker.model_runner import forward_together
from w2s_core.worker.scheduled_step import ScheduledStep
from w2s_core.worker.scheduler import ModelScheduler
from w2s_core.worker.token_tree import Node

_log = logging.getLogger(__name__)
_MAX_STEP_TIMES = 4096  # the latest step times, kept until the next Pong; one second has fewer
_KINDS: tuple[StepKind, ...] = ("prefill", "decode", "score")  # a forward that is several has the first of their kinds
_Part = tuple[ModelScheduler, ScheduledStep]


class ModelGroup:
    """The schedulers of models that share their weights."""

    def __init__(self, schedulers: Sequence[ModelScheduler], cancel: Callable[[int], None]) -> None:
        """`cancel` drops what is left of a job that has failed, in all models."""
        self._schedulers = schedulers
        self._cancel = cancel
        self._step_times: deque[tuple[StepKind, float]] = deque(maxlen=_MAX_STEP_TIMES)

    def step(self) -> list[JobOutcome]:
        """Runs one forward, of all models that have jobs. Returns the updates and results that came of it."""
        outcomes: list[JobOutcome] = []
        parts: list[_Part] = []
        promised: set[Node] = set()
        # Steered rows come last: by then the other models have promised their logits.
        for scheduler in sorted(self._schedulers, key=lambda each: any(task.experts for task in each.sample_tasks)):
            if scheduler.tasks:
                step, failed = scheduler.schedule(promised)
                outcomes += self._drop_failed(failed)
                promised |= step.batch.logits_rows.keys()
                parts.append((scheduler, step))
        return outcomes + self._or_fail(parts, partial(self._run, parts)) if parts else outcomes

    def drain_step_times(self) -> list[tuple[StepKind, float]]:
        """The kind and seconds of each forward since the last call."""
        step_times = list(self._step_times)
        self._step_times.clear()
        return step_times

    def _run(self, parts: Sequence[_Part]) -> list[JobOutcome]:
        """Runs one forward of these steps and updates their tasks."""
        started = time.perf_counter()
        running = [(scheduler, step) for scheduler, step in parts if step.batch.size]
        logits = dict.fromkeys((scheduler for scheduler, _ in parts), torch.empty(0, 0))
        if running:
            results = forward_together([(scheduler.runner, step.batch) for scheduler, step in running])
            logits |= zip((scheduler for scheduler, _ in running), results, strict=True)
        outcomes: list[JobOutcome] = []
        for scheduler, step in parts:
            finish = partial(scheduler.finish, step, logits[scheduler])
            outcomes += self._or_fail([(scheduler, step)], finish)
        if running:
            kind = min((step.kind for _, step in running), key=_KINDS.index)
            self._step_times.append((kind, time.perf_counter() - started))
        return outcomes

    def _or_fail(self, parts: Sequence[_Part], call: Callable[[], list[JobOutcome]]) -> list[JobOutcome]:
        """What the call returns. If it raises an error, that fails the sessions of these steps, not the others."""
        try:
            return self._drop_failed(call())
        except torch.AcceleratorError:
            raise  # no kernel runs in this process any more: the pool must start a new one
        except Exception as error:  # out of memory, or a bug: it must not fail requests that are not in the batch
            size = sum(step.batch.size for _, step in parts)
            if not size:
                raise
            _log.exception("a batch of %d tokens failed", size)
            failed = [self._drop_failed(scheduler.fail(step, error)) for scheduler, step in parts]
        parts[0][0].runner.release_memory()
        return [outcome for outcomes in failed for outcome in outcomes]

    def _drop_failed(self, outcomes: list[JobOutcome]) -> list[JobOutcome]:
        """Drops what is left of the failed jobs among these outcomes, which it returns."""
        for outcome in outcomes:
            if isinstance(outcome, JobFailed):
                self._cancel(outcome.id)
        return outcomes


def group_models(schedulers: Sequence[ModelScheduler], cancel: Callable[[int], None]) -> list[ModelGroup]:
    """A worker's models in groups, in the order in which they run: that of the last model first. It is a pair's, whose
    logits rows of large models may need."""
    groups: dict[int, list[ModelScheduler]] = {}
    for scheduler in schedulers:
        groups.setdefault(id(scheduler.runner.base), []).append(scheduler)
    return [ModelGroup(group, cancel) for group in reversed(groups.values())]
