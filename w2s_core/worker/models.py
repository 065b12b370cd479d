"""All models of one worker and the orders that they work on."""

from __future__ import annotations

from collections.abc import Mapping

from w2s_core.pool.messages import (
    CancelJob,
    CloseSession,
    InspectJob,
    JobOutcome,
    ModelInfo,
    Ping,
    Pong,
    PromptJob,
    SampleJob,
    ScoreJob,
    StopRows,
    WorkerCommand,
    WorkerState,
)
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.scheduler import ModelScheduler


class WorkerModels:
    """All models of one worker; they take turns."""

    def __init__(
        self, models: Mapping[str, tuple[ModelRunner, ModelInfo]], grammars: Mapping[str, GrammarEngine] | None = None
    ) -> None:
        """Models that are not in `grammars` cannot follow any."""
        grammars = grammars or {}
        self._queues = {
            name: ModelScheduler(runner, info, grammars.get(name)) for name, (runner, info) in models.items()
        }

    @property
    def idle(self) -> bool:
        return not any(queue.tasks for queue in self._queues.values())

    def take(self, order: WorkerCommand) -> list[JobOutcome | Pong]:
        """Acts on an order; what it answers at once."""
        match order:
            case SampleJob() | ScoreJob() | PromptJob():
                self._queues[order.model].add(order)
            case StopRows():
                for task in (t for q in self._queues.values() for t in q.sampling if t.job.id == order.id):
                    task.stop(order.rows)
            case CancelJob():
                for queue in self._queues.values():
                    queue.cancel(order.id)
            case CloseSession():
                for queue in self._queues.values():
                    queue.close_session(order.session)
            case Ping():
                return [self._pong()]
            case InspectJob():
                return [self._inspect(order)]
        return []

    def turn(self) -> list[JobOutcome]:
        """One forward of each model that has something to do."""
        return [outcome for queue in self._queues.values() if queue.tasks for outcome in queue.turn()]

    def _pong(self) -> Pong:
        usage = max((queue.slots_held / queue.runner.cache.slots for queue in self._queues.values()), default=0.0)
        return Pong(usage, tuple(step for queue in self._queues.values() for step in queue.take_steps()))

    def _inspect(self, job: InspectJob) -> WorkerState:
        for queue in self._queues.values():
            queue.check_integrity()
        return WorkerState(
            job.id,
            slots_used={name: queue.slots_held for name, queue in self._queues.items()},
            sessions={name: len(queue.trees) for name, queue in self._queues.items()},
            jobs=sum(len(queue.tasks) for queue in self._queues.values()),
        )
