"""Decide, run, account: one forward of one model per turn, over every job that it has.

Continuous batching: rows join at any turn and leave when they are done. Rows that decode come first; what room is left
goes to prompts and to scoring, in slices, so that no newcomer stalls the others.
"""

from __future__ import annotations

import torch

from w2s_core.device.batch import Batch
from w2s_core.device.jobs import (
    CancelJob,
    CloseSession,
    InspectJob,
    JobFailed,
    ModelInfo,
    Order,
    Outcome,
    SampleJob,
    ScoreJob,
    StopRows,
    WorkerState,
)
from w2s_core.device.kv_cache import CacheFullError
from w2s_core.device.runner import ModelRunner
from w2s_core.device.sampling import draw_tokens
from w2s_core.device.tasks import RowState, SampleTask, ScoreTask
from w2s_core.device.token_tree import TokenTree

_SLICE = 256  # tokens of prompts and scoring a turn: bounds its time and its logits' memory (tokens × vocabulary)


class ModelQueue:
    """One model's sessions and jobs."""

    def __init__(self, runner: ModelRunner, info: ModelInfo) -> None:
        self.runner = runner
        self.trees: dict[int, TokenTree] = {}
        self.sampling: list[SampleTask] = []
        self.scoring: list[ScoreTask] = []
        self._eos = info.eos

    @property
    def tasks(self) -> list[SampleTask | ScoreTask]:
        return [*self.sampling, *self.scoring]

    def add(self, job: SampleJob | ScoreJob) -> None:
        """Starts a job. What no job of its session needs any more is dropped. Raises CacheFullError."""
        tree = self.trees.get(job.session)
        if tree is None:
            tree = self.trees[job.session] = TokenTree(self.runner.cache, job.prompt)
        task = SampleTask(job, tree, self._eos) if isinstance(job, SampleJob) else ScoreTask(job, tree)
        (self.sampling if isinstance(task, SampleTask) else self.scoring).append(task)  # type: ignore[arg-type]
        tree.keep(leaf for other in self.tasks if other.tree is tree for leaf in other.leaves)

    def turn(self) -> list[Outcome]:
        """One forward and what came of it."""
        batch, sampling, scoring = self._decide()
        try:
            logits = self.runner.forward(batch) if batch.size else torch.empty(0, 0)  # all was known already
        except (CacheFullError, torch.OutOfMemoryError, RuntimeError) as error:
            return self._fail(batch, error)
        return self._account(batch, logits, sampling, scoring)

    def _decide(self) -> tuple[Batch, list[tuple[SampleTask, RowState]], list[ScoreTask]]:
        batch = Batch(_SLICE + sum(len(task.live) for task in self.sampling))
        # Decoding rows cost one token each; prompts and resumed answers may take several turns.
        for task in sorted(self.sampling, key=lambda t: not t.tree.root.fed):
            for node in task.wanted():
                batch.request(task.tree, node)
        rows = [(task, row) for task in self.sampling for row in task.live if row.leaf in batch.wanted]
        for scorer in self.scoring:
            before = batch.size
            for node in scorer.wanted():
                batch.request(scorer.tree, node)
            scorer.tokens_run += batch.size - before
        return batch, rows, list(self.scoring)

    def _account(
        self,
        batch: Batch,
        logits: torch.Tensor,
        sampling: list[tuple[SampleTask, RowState]],
        scoring: list[ScoreTask],
    ) -> list[Outcome]:
        if sampling:
            places = torch.tensor([batch.wanted[row.leaf] for _, row in sampling], device=logits.device)
            tokens, logprobs = draw_tokens(logits[places], [task.draw(row) for task, row in sampling])
            for (task, row), token, logprob in zip(sampling, tokens, logprobs, strict=True):
                task.append(row, token, logprob)
        if scoring:
            self._score(batch, logits, scoring)
        news = [task.news() for task in self.sampling]
        results = [task.result() for task in self.scoring if task.done]
        self.sampling = [task for task in self.sampling if task.live]
        self.scoring = [task for task in self.scoring if not task.done]
        return [*(n for n in news if n is not None), *results]

    @staticmethod
    def _score(batch: Batch, logits: torch.Tensor, tasks: list[ScoreTask]) -> None:
        pending = [pair for task in tasks for pair in task.pending(batch.wanted)]
        if pending:
            rows = torch.tensor([row for _, row in pending], device=logits.device)
            tokens = torch.tensor([node.token for node, _ in pending], device=logits.device)
            values = (logits[rows, tokens] - logits.logsumexp(1)[rows]).tolist()
            for (node, _), nats in sorted(zip(pending, values, strict=True), key=lambda item: item[0][0].depth):
                assert node.parent is not None
                assert node.parent.logprob is not None
                node.logprob = node.parent.logprob + nats
        for task in tasks:
            task.settle()

    def _fail(self, batch: Batch, error: Exception) -> list[Outcome]:
        """Fails this batch's jobs and forgets their sessions' KV, which may be half written; the rest goes on."""
        broken = set(batch.trees)
        failed = [task for task in self.tasks if task.tree in broken]
        self.sampling = [task for task in self.sampling if task.tree not in broken]
        self.scoring = [task for task in self.scoring if task.tree not in broken]
        for session in [s for s, tree in self.trees.items() if tree in broken]:
            self.trees.pop(session).close()
        full = isinstance(error, CacheFullError)
        return [JobFailed(task.job.id, str(error), cache_full=full) for task in failed]

    def cancel(self, job: int) -> None:
        self.sampling = [task for task in self.sampling if task.job.id != job]
        self.scoring = [task for task in self.scoring if task.job.id != job]

    def close_session(self, session: int) -> None:
        tree = self.trees.pop(session, None)
        if tree is not None:
            self.sampling = [task for task in self.sampling if task.tree is not tree]
            self.scoring = [task for task in self.scoring if task.tree is not tree]
            tree.close()

    def check_integrity(self) -> None:
        self.runner.cache.check_integrity()
        for tree in self.trees.values():
            tree.check_integrity()
        assert self.runner.cache.slots_used == sum(tree.region.size for tree in self.trees.values()), "a lost region"


class Scheduler:
    """All models of one worker; they take turns."""

    def __init__(self, models: dict[str, tuple[ModelRunner, ModelInfo]]) -> None:
        self._queues = {name: ModelQueue(runner, info) for name, (runner, info) in models.items()}

    @property
    def idle(self) -> bool:
        return not any(queue.tasks for queue in self._queues.values())

    def take(self, order: Order) -> list[Outcome]:
        """Acts on an order; what it answers at once."""
        match order:
            case SampleJob() | ScoreJob():
                try:
                    self._queues[order.model].add(order)
                except CacheFullError as error:
                    return [JobFailed(order.id, str(error), cache_full=True)]
            case StopRows():
                for task in (t for q in self._queues.values() for t in q.sampling if t.job.id == order.id):
                    task.stop(order.rows)
            case CancelJob():
                for queue in self._queues.values():
                    queue.cancel(order.id)
            case CloseSession():
                for queue in self._queues.values():
                    queue.close_session(order.session)
            case InspectJob():
                return [self._inspect(order)]
        return []

    def turn(self) -> list[Outcome]:
        """One forward of each model that has something to do."""
        return [outcome for queue in self._queues.values() if queue.tasks for outcome in queue.turn()]

    def _inspect(self, job: InspectJob) -> WorkerState:
        for queue in self._queues.values():
            queue.check_integrity()
        return WorkerState(
            job.id,
            slots_used={name: queue.runner.cache.slots_used for name, queue in self._queues.items()},
            sessions={name: len(queue.trees) for name, queue in self._queues.items()},
            jobs=sum(len(queue.tasks) for queue in self._queues.values()),
        )
