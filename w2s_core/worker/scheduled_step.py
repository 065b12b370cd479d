"""Scheduled step: one step's batch and the rows that draw from it, and what each kind of task adds to a batch."""

from __future__ import annotations

from collections.abc import Callable, Container
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from w2s_core.types import StepKind
from w2s_core.worker.batch import Batch
from w2s_core.worker.prompt_task import PromptTask
from w2s_core.worker.reward_task import RewardTask
from w2s_core.worker.tasks import ExpertTask, RowState, SampleTask, ScoreTask
from w2s_core.worker.token_tree import Node, TokenTree

Task: TypeAlias = SampleTask | ExpertTask | ScoreTask | RewardTask | PromptTask


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """One step as scheduled: its batch, the rows that draw a token, and the sessions that found no free KV slots.

    `masks` is done when the rows' grammar masks are computed; None if no row has a grammar.
    """

    batch: Batch
    rows: list[tuple[SampleTask, RowState]]
    without_slots: list[TokenTree]
    masks: Future[None] | None

    @property
    def kind(self) -> StepKind:
        """The label of the step's metrics. A step that does several things takes the first of prefill, decode,
        score."""
        if self.batch.has_prefill:
            return "prefill"
        return "decode" if self.rows else "score"


def batch_additions(batch: Batch, task: Task, promised: Container[Node]) -> list[Callable[[], object]]:
    """The calls that add to the batch what the task needs for its logits in this step. `promised`: see `SampleTask`."""
    if isinstance(task, PromptTask):
        return [] if task.done else [partial(batch.request_prompt_logits, task.tree, task.processed)]
    decoding = isinstance(task, SampleTask | ExpertTask)
    nodes = task.needed_nodes(promised) if isinstance(task, SampleTask) else task.needed_nodes()
    return [partial(batch.request_logits, task.tree, node, decoding=decoding) for node in nodes]
