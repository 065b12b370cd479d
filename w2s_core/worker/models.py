"""Worker models: all models of one worker process. Routes the pool's commands to their schedulers."""

from __future__ import annotations

from collections.abc import Mapping

from w2s_core.pool.messages import (
    CancelJob,
    CloseSession,
    InspectJob,
    JobOutcome,
    Ping,
    Pong,
    PromptJob,
    RewardJob,
    SampleJob,
    ScoreJob,
    StopRows,
    TokenJob,
    WorkerCommand,
    WorkerState,
)
from w2s_core.pool.specs import ModelInfo
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.model_group import group_models
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.scheduler import ModelScheduler


class WorkerModels:
    """All models of one worker. In a step those of one base run one forward together, and every other one its own."""

    def __init__(
        self, models: Mapping[str, tuple[ModelRunner, ModelInfo]], grammars: Mapping[str, GrammarEngine] | None = None
    ) -> None:
        """Models without an entry in `grammars` take no job with a grammar."""
        grammars = grammars or {}
        self._schedulers = {
            name: ModelScheduler(runner, info, grammars.get(name)) for name, (runner, info) in models.items()
        }
        self._groups = group_models(list(self._schedulers.values()), self._cancel)

    @property
    def idle(self) -> bool:
        """Whether no model has a job."""
        return not any(scheduler.tasks for scheduler in self._schedulers.values())

    def handle(self, command: WorkerCommand) -> list[JobOutcome | Pong]:
        """Carries out a command. Returns its replies: a Pong, a WorkerState, a JobFailed, or none."""
        match command:
            case SampleJob() | ScoreJob() | RewardJob() | PromptJob():
                return self._add(command)
            case StopRows():
                self._stop_rows(command)
            case CancelJob():
                self._cancel(command.id)
            case CloseSession():
                for scheduler in self._schedulers.values():
                    scheduler.close_session(command.session)
            case Ping():
                return [self._pong()]
            case InspectJob():
                return [self._inspect(command)]
        return []

    def step(self) -> list[JobOutcome]:
        """Runs a step of all models that have jobs. Returns the updates and results that came of it."""
        return [outcome for group in self._groups for outcome in group.step()]

    def _add(self, job: TokenJob) -> list[JobOutcome | Pong]:
        scheduler = self._schedulers[job.model]
        failed = scheduler.add(job)
        if isinstance(job, SampleJob) and not failed:
            for expert in job.experts:
                self._schedulers[expert.model].add_expert(scheduler.sample_tasks[-1], expert)
        return [*failed]

    def _cancel(self, job: int) -> None:
        for scheduler in self._schedulers.values():
            scheduler.cancel(job)

    def _stop_rows(self, command: StopRows) -> None:
        for scheduler in self._schedulers.values():
            for task in scheduler.sample_tasks:
                if task.job.id == command.id:
                    task.stop(command.rows)

    def _pong(self) -> Pong:
        schedulers = self._schedulers.values()
        usage = max((s.slots_in_use / s.runner.cache.slots for s in schedulers), default=0.0)
        return Pong(usage, tuple(step for group in self._groups for step in group.drain_step_times()))

    def _inspect(self, job: InspectJob) -> WorkerState:
        for scheduler in self._schedulers.values():
            scheduler.check_integrity()
        return WorkerState(
            job.id,
            slots_used={name: scheduler.slots_in_use for name, scheduler in self._schedulers.items()},
            sessions={name: len(scheduler.trees) for name, scheduler in self._schedulers.items()},
            jobs=sum(len(scheduler.tasks) for scheduler in self._schedulers.values()),
        )
