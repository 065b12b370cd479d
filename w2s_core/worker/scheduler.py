"""Decide, run, account: one forward of one model per turn, over every job that it has.

Continuous batching: rows join at any turn and leave when they are done. A decoding row always gets its token; prompts
and scoring come in slices beside it, so that no newcomer stalls the others.

Memory: sessions take KV as they grow. When there is no more, remembered prompts go first, then the KV of sessions that
have nothing to do, then that of younger ones: those lose KV, never tokens, and run again what they need when there is
room. So the oldest session always gets on, and only one that does not fit alone fails.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import torch
from llguidance import LLMatcher

from w2s_core.pool.messages import JobFailed, JobOutcome, ModelInfo, PromptJob, SampleJob, ScoreJob
from w2s_core.types import StepKind
from w2s_core.worker.batch import Batch
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.grammar_steps import refused, start_masks, start_ready_grammars
from w2s_core.worker.kv_cache import CacheFullError
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.prefix_cache import PrefixCache
from w2s_core.worker.prompt_task import PromptTask
from w2s_core.worker.sampling import draw_tokens
from w2s_core.worker.tasks import RowState, SampleTask, ScoreTask
from w2s_core.worker.token_tree import TokenTree
from w2s_core.worker.top_logprobs import top_logprobs
from w2s_core.worker.transfer import long_tensor

_log = logging.getLogger(__name__)
_STEPS = 4096  # that are remembered, the latest, until somebody asks for them: more than a second has
_SLICE = 256  # tokens of prompts and scoring a turn: bounds its time and its logits' memory (tokens × vocabulary)


class ModelScheduler:
    """One model's sessions and jobs."""

    def __init__(self, runner: ModelRunner, info: ModelInfo, grammars: GrammarEngine | None = None) -> None:
        """Without `grammars` no job may ask for one."""
        self.runner = runner
        self.grammars = grammars
        self.trees: dict[int, TokenTree] = {}
        self.sampling: list[SampleTask] = []
        self.scoring: list[ScoreTask] = []
        self.reading: list[PromptTask] = []
        self.prefixes = PrefixCache(runner.cache)
        self._eos = info.eos
        self._steps: deque[tuple[StepKind, float]] = deque(maxlen=_STEPS)

    @property
    def tasks(self) -> list[SampleTask | ScoreTask | PromptTask]:
        return [*self.sampling, *self.scoring, *self.reading]

    def add(self, job: SampleJob | ScoreJob | PromptJob) -> None:
        """Starts a job. What no job of its session needs any more is dropped."""
        tree = self.trees.get(job.session) or self._new_tree(job)
        match job:
            case SampleJob():
                self.sampling.append(SampleTask(job, tree, self._eos, self._beginning(job)))
            case ScoreJob():
                self.scoring.append(ScoreTask(job, tree))
            case PromptJob():
                self.reading.append(PromptTask(job, tree))
        tree.retain(leaf for other in self.tasks if other.tree is tree for leaf in other.leaves)

    def _beginning(self, job: SampleJob) -> Future[LLMatcher] | None:
        if job.sampling.grammar is None:
            return None
        assert self.grammars is not None
        return self.grammars.beginning(job.sampling.grammar.source)

    def _new_tree(self, job: SampleJob | ScoreJob | PromptJob) -> TokenTree:
        tree = TokenTree(self.runner.cache, job.prompt)
        if not isinstance(job, PromptJob):
            try:
                self.prefixes.match_prefix(tree, self.trees.values())
            except (CacheFullError, torch.OutOfMemoryError):
                tree.evict()  # it will run its prompt when there is room
        self.trees[job.session] = tree
        return tree

    def turn(self) -> list[JobOutcome]:
        """One forward and what came of it."""
        without_grammar = start_ready_grammars(self.sampling, nothing_else=len(self.sampling) == len(self.tasks))
        return [*self._give_up(without_grammar), *self._step()]

    def _step(self) -> list[JobOutcome]:
        began = time.perf_counter()
        batch, sampling, scoring, stuck = self._decide()
        masks = start_masks(self.grammars, sampling)
        if stuck and not batch.size:
            # Everybody waits, and the oldest could not be given room: it does not fit even alone.
            return self._fail(
                stuck[:1],
                f"All sequences of this request together have outgrown the KV cache of {self.runner.cache.slots} "
                "tokens. Please lower max_tokens, or how many are sampled at once.",
                field="max_tokens",
            )
        try:
            logits = self.runner.forward(batch) if batch.size else torch.empty(0, 0)  # all was known already
            gone: list[JobOutcome] = []
            if masks is not None:
                masks.result()
                gone = self._give_up(refused(sampling))
                sampling = [(task, row) for task, row in sampling if task in self.sampling]
            gone += self._account(batch, logits, sampling, scoring)
            if batch.size:
                self._steps.append((_kind(batch, sampling), time.perf_counter() - began))
            return gone
        except torch.AcceleratorError:
            raise  # the device answers nobody any more: a new process is needed
        except Exception as error:  # out of memory, or a bug: it must not take the other requests with it
            if not batch.size:
                raise
            _log.exception("a batch of %d tokens failed", batch.size)
            failed = self._fail(batch.trees, str(error))
        self.runner.release_memory()
        return failed

    def take_steps(self) -> list[tuple[StepKind, float]]:
        """The kinds and seconds of the turns since the last call that ran something."""
        steps = list(self._steps)
        self._steps.clear()
        return steps

    def _decide(self) -> tuple[Batch, list[tuple[SampleTask, RowState]], list[ScoreTask], list[TokenTree]]:
        batch = Batch(_SLICE)
        stuck: list[TokenTree] = []
        ages = {tree: age for age, tree in enumerate(self.trees.values())}
        for task in sorted(self.tasks, key=lambda task: ages[task.tree]):
            before = batch.size
            served = [self._request(batch, task.tree, ask) for ask in _requests(batch, task)]
            if not all(served):
                stuck.append(task.tree)
            if isinstance(task, ScoreTask):
                task.tokens_run += batch.size - before
        rows = [(task, row) for task in self.sampling for row in task.live if row.leaf in batch.logits_rows]
        return batch, rows, list(self.scoring), stuck

    def _request(self, batch: Batch, tree: TokenTree, ask: Callable[[], object]) -> bool:
        """False when there is no memory for what is asked now."""
        while True:
            try:
                ask()
            except (CacheFullError, torch.OutOfMemoryError):
                if not self._make_room(tree, batch):
                    return False
            else:
                return True

    def _make_room(self, tree: TokenTree, batch: Batch) -> bool:
        """Takes KV from somebody who can better do without it; False when there is nobody."""
        if self.prefixes.evict_one():
            return True
        others = [other for other in self.trees.values() if other.region is not None and other not in batch.trees]
        busy = {task.tree for task in self.tasks}
        idle = [other for other in others if other not in busy and other is not tree]
        order = list(self.trees.values())
        younger = order[order.index(tree) + 1 :]
        victims = idle or [other for other in younger if other in others]
        if victims:
            victims[-1].evict()
        return bool(victims)

    def _account(
        self,
        batch: Batch,
        logits: torch.Tensor,
        sampling: list[tuple[SampleTask, RowState]],
        scoring: list[ScoreTask],
    ) -> list[JobOutcome]:
        if sampling:
            places = [batch.logits_rows[row.leaf] for _, row in sampling]
            in_order = places == list(range(len(logits)))  # then there is no need to copy what is large
            rows = logits if in_order else logits[long_tensor(places, logits.device)]
            self._find_alternatives(rows, sampling)
            tokens, logprobs = draw_tokens(rows, [task.draw(row) for task, row in sampling])
            for (task, row), token, logprob in zip(sampling, tokens, logprobs, strict=True):
                task.append(row, token, logprob)
        if scoring:
            self._score(batch, logits, scoring)
        for reader in self.reading:
            behind_prompt = logits[batch.prompt_logits_rows(reader.tree)]
            if len(behind_prompt):
                reader.read(behind_prompt)
        news = [task.news() for task in self.sampling]
        done = [task for task in self.tasks if not isinstance(task, SampleTask) and task.done]
        self.sampling = [task for task in self.sampling if task.live]
        self.scoring = [task for task in self.scoring if not task.done]
        self.reading = [task for task in self.reading if not task.done]
        return [*(n for n in news if n is not None), *(task.result() for task in done)]

    @staticmethod
    def _find_alternatives(rows: torch.Tensor, sampling: Sequence[tuple[SampleTask, RowState]]) -> None:
        """For those that ask, before the draw: what the logits are worth without temperature and penalties."""
        asking = [i for i, (task, _) in enumerate(sampling) if task.job.sampling.alternatives]
        if asking:
            most = max(sampling[i][0].job.sampling.alternatives for i in asking)
            found = top_logprobs(rows if len(asking) == len(rows) else rows[long_tensor(asking, rows.device)], most)
            for i, alternatives in zip(asking, found, strict=True):
                task, row = sampling[i]
                row.alternatives.append(alternatives[: task.job.sampling.alternatives])

    @staticmethod
    def _score(batch: Batch, logits: torch.Tensor, tasks: list[ScoreTask]) -> None:
        pending = [pair for task in tasks for pair in task.pending(batch.logits_rows)]
        if pending:
            rows = long_tensor([row for _, row in pending], logits.device)
            tokens = long_tensor([node.token for node, _ in pending], logits.device)
            values = (logits[rows, tokens] - logits.logsumexp(1)[rows]).tolist()
            for (node, _), nats in sorted(zip(pending, values, strict=True), key=lambda item: item[0][0].position):
                assert node.parent is not None
                assert node.parent.logprob is not None
                node.logprob = node.parent.logprob + nats
        for task in tasks:
            task.settle()

    def _fail(self, broken: list[TokenTree], message: str, field: str | None = None) -> list[JobOutcome]:
        """Fails these sessions' jobs and forgets their KV, which may be half written; the rest goes on."""
        failed = [task for task in self.tasks if task.tree in broken]
        for session in [session for session, tree in self.trees.items() if tree in broken]:
            self.trees[session].evict()
            self.close_session(session)
        return [JobFailed(task.job.id, message, field) for task in failed]

    def _give_up(self, failed: list[JobFailed]) -> list[JobOutcome]:
        for failure in failed:
            self.cancel(failure.id)
        return [*failed]

    def cancel(self, job: int) -> None:
        self.sampling = [task for task in self.sampling if task.job.id != job]
        self.scoring = [task for task in self.scoring if task.job.id != job]
        self.reading = [task for task in self.reading if task.job.id != job]

    def close_session(self, session: int) -> None:
        tree = self.trees.pop(session, None)
        if tree is not None:
            self.sampling = [task for task in self.sampling if task.tree is not tree]
            self.scoring = [task for task in self.scoring if task.tree is not tree]
            self.reading = [task for task in self.reading if task.tree is not tree]
            self.prefixes.insert(tree)

    @property
    def slots_held(self) -> int:
        """KV slots of living sessions."""
        return self.runner.cache.slots_used - self.prefixes.slots_used

    def check_integrity(self) -> None:
        self.runner.cache.check_integrity()
        for tree in self.trees.values():
            tree.check_integrity()
        assert self.slots_held == sum(t.region.size for t in self.trees.values() if t.region), "a lost region"


def _kind(batch: Batch, sampling: Sequence[tuple[SampleTask, RowState]]) -> StepKind:
    """A step that does several things goes by the first of: a prompt's tokens, rows that draw, answers to score."""
    if batch.has_prefill:
        return "prefill"
    return "decode" if sampling else "score"


def _requests(batch: Batch, task: SampleTask | ScoreTask | PromptTask) -> list[Callable[[], object]]:
    """What the task wants of the next forward."""
    if isinstance(task, PromptTask):
        return [] if task.done else [partial(batch.request_prompt_logits, task.tree, task.known)]
    urgent = isinstance(task, SampleTask)
    return [partial(batch.request_logits, task.tree, node, decoding=urgent) for node in task.wanted()]
