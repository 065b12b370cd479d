"""Scheduler: continuous batching of one model's jobs. It schedules each step's batch and updates the tasks after it.

Rows join and leave the batch at any step. A decoding row gets its token in every step; prompts and scoring run
alongside it in slices (chunked prefill), so that a new request does not stall the others.

Sessions take KV slots as they grow. When none are free, cached prefixes are evicted first, then sessions without a job,
and then younger sessions are preempted: they lose KV, never tokens, and compute it again when slots are free. The
oldest session therefore always makes progress, and a request fails only if it does not fit alone.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from concurrent.futures import Future
from dataclasses import replace

import torch
from llguidance import LLMatcher

from w2s_core.pool.messages import (
    Expert,
    JobFailed,
    JobOutcome,
    PromptJob,
    RewardJob,
    SampleJob,
    ScoreJob,
    TokenJob,
)
from w2s_core.pool.specs import ModelInfo
from w2s_core.types import Tokens
from w2s_core.worker.batch import Batch
from w2s_core.worker.grammar_masks import GrammarEngine
from w2s_core.worker.grammar_steps import failed_grammars, start_masks, start_ready_grammars
from w2s_core.worker.kv_cache import CacheFullError
from w2s_core.worker.model_runner import ModelRunner
from w2s_core.worker.prefix_cache import PrefixCache
from w2s_core.worker.prompt_task import PromptTask
from w2s_core.worker.proxy_tuning import collect_expert_logits
from w2s_core.worker.reward_task import RewardTask
from w2s_core.worker.scheduled_step import ScheduledStep, Task, batch_additions
from w2s_core.worker.step_outputs import collect_prompt_logprobs, collect_rewards, draw_next_tokens, score_answers
from w2s_core.worker.tasks import ExpertTask, SampleTask, ScoreTask, unknown_token
from w2s_core.worker.token_tree import Node, TokenTree

# Prompt and scoring tokens per step. Bounds a step's time and the memory of its logits (tokens × vocabulary).
_TOKEN_BUDGET = 256


class ModelScheduler:
    """One model's sessions and jobs."""

    def __init__(self, runner: ModelRunner, info: ModelInfo, grammars: GrammarEngine | None = None) -> None:
        """Without `grammars`, no job may have a grammar."""
        self.runner = runner
        self.grammars = grammars
        self.trees: dict[int | tuple[int, Tokens], TokenTree] = {}  # by session, or session and prompt; oldest first
        self.sample_tasks: list[SampleTask] = []
        self.expert_tasks: list[ExpertTask] = []
        self.score_tasks: list[ScoreTask] = []
        self.reward_tasks: list[RewardTask] = []
        self.prompt_tasks: list[PromptTask] = []
        self.prefix_cache = PrefixCache(runner.cache)
        self._info = info
        self._stalled = False  # whether the last step ran nothing and no job has come since

    @property
    def tasks(self) -> list[Task]:
        expert_tasks = [task for task in self.expert_tasks if not task.done]
        return [*self.sample_tasks, *expert_tasks, *self.score_tasks, *self.reward_tasks, *self.prompt_tasks]

    def add(self, job: TokenJob) -> list[JobOutcome]:
        """Starts a job. Its session keeps only the tokens that this or another running job of the session names.

        Returns the job's failure, having changed nothing, if it has a token id that the model does not have.
        """
        if (token := unknown_token(job, self._info.vocabulary)) is not None:
            return [JobFailed(job.id, f"There is no token {token}: the model has {self._info.vocabulary} tokens.")]
        self._stalled = False
        tree = self.trees.get(job.session) or self._open_tree(job.session, job.prompt, isinstance(job, PromptJob))
        match job:
            case SampleJob():
                self.sample_tasks.append(SampleTask(job, tree, self._info.eos, self._compile_grammar(job)))
            case ScoreJob():
                self.score_tasks.append(ScoreTask(job, tree))
            case RewardJob():
                self.reward_tasks.append(RewardTask(job, tree))
            case PromptJob():
                self.prompt_tasks.append(PromptTask(job, tree))
        self._prune(tree)
        return []

    def add_expert(self, sample: SampleTask, expert: Expert) -> None:
        """Starts an expert's part in a job that has just been added to its large model's scheduler."""
        own = self.trees.get(sample.job.session)
        # The session's tree is shared if the expert is the large model itself and reads the same prompt.
        key = sample.job.session if own and own.prompt == expert.prompt else (sample.job.session, expert.prompt)
        tree = self.trees.get(key) or self._open_tree(key, expert.prompt)
        self.expert_tasks.append(ExpertTask(sample, expert, tree))
        self._prune(tree)

    def _prune(self, tree: TokenTree) -> None:
        tree.prune_to(leaf for task in self.tasks if task.tree is tree for leaf in task.leaves)

    def _compile_grammar(self, job: SampleJob) -> Future[LLMatcher] | None:
        if job.sampling.grammar is None:
            return None
        assert self.grammars is not None
        return self.grammars.initial_matcher(job.sampling.grammar.source)

    def _open_tree(self, key: int | tuple[int, Tokens], prompt: Tokens, needs_prompt_logits: bool = False) -> TokenTree:
        tree = TokenTree(self.runner.cache, prompt)
        if not needs_prompt_logits:
            try:
                self.prefix_cache.match_prefix(tree, self.trees.values())
            except CacheFullError:
                tree.evict()  # its prompt is computed when slots are free
        self.trees[key] = tree
        return tree

    def schedule(self, promised: Container[Node] = ()) -> tuple[ScheduledStep, list[JobOutcome]]:
        """Decides what the next forward runs. `promised`: see `SampleTask`. Returns failures that came of it, too."""
        failed = self._cancel_failed(start_ready_grammars(self.sample_tasks, idle=self._stalled))
        step = self._fill_batch(promised)
        self._stalled = not step.batch.size
        if step.without_slots and self._stalled and self._only_resident(step.without_slots[0]):
            failed += self._fail_sessions(
                step.without_slots[:1],
                f"The sequences of this request have outgrown the KV cache of {self.runner.cache.slots} tokens. "
                "Lower max_tokens, or sample fewer sequences at once.",
                field="max_tokens",
            )
        return step, failed

    def _fill_batch(self, promised: Container[Node]) -> ScheduledStep:
        """Fills a batch from all tasks, those of older sessions first. Evicts and preempts where slots are needed."""
        batch = Batch(_TOKEN_BUDGET)
        without_slots: list[TokenTree] = []
        ages = {tree: age for age, tree in enumerate(self.trees.values())}
        for task in sorted(self.tasks, key=lambda task: ages[task.tree]):
            before = batch.size
            additions = batch_additions(batch, task, promised)
            got_slots = [self._add_or_evict(batch, task.tree, add) for add in additions]
            if not all(got_slots):
                without_slots.append(task.tree)
            if isinstance(task, ScoreTask | RewardTask):
                task.tokens_run += batch.size - before
        drawing = [(task, row) for task in self.sample_tasks for row in task.live_rows]
        rows = [(task, row) for task, row in drawing if task.can_draw(row, batch.logits_rows, promised)]
        return ScheduledStep(batch, rows, without_slots, start_masks(self.grammars, rows))

    def _add_or_evict(self, batch: Batch, tree: TokenTree, add: Callable[[], object]) -> bool:
        """Adds to the batch, freeing slots until it succeeds. False when no slots can be freed."""
        while True:
            try:
                add()
            except CacheFullError:  # anything else may have left KV half moved, and must end the worker
                if not self._free_slots(tree, batch):
                    return False
            else:
                return True

    def _free_slots(self, tree: TokenTree, batch: Batch) -> bool:
        """Frees KV slots for `tree`: evicts a cached prefix, else an idle session, else preempts a younger session.

        Sessions with tokens in `batch` keep their KV. Returns False when there is nothing to free.
        """
        return self.prefix_cache.evict_one() or self._evict_idle(tree, batch) or self._preempt(tree, batch)

    def _evict_idle(self, tree: TokenTree, batch: Batch) -> bool:
        """Evicts the youngest other session that has no task. False if there is none."""
        busy = {task.tree for task in self.tasks}
        idle = [other for other in self._evictable(batch) if other not in busy and other is not tree]
        if idle:
            idle[-1].evict()
        return bool(idle)

    def _preempt(self, tree: TokenTree, batch: Batch) -> bool:
        """Evicts the youngest session that is younger than `tree`; its tasks go on later. False if there is none."""
        sessions = list(self.trees.values())
        younger = sessions[sessions.index(tree) + 1 :]
        victims = [other for other in self._evictable(batch) if other in younger]
        if victims:
            victims[-1].evict()
        return bool(victims)

    def _evictable(self, batch: Batch) -> list[TokenTree]:
        """The sessions that hold KV and have no token in the batch, oldest first."""
        return [tree for tree in self.trees.values() if tree.resident and tree not in batch.trees]

    def finish(self, step: ScheduledStep, logits: torch.Tensor) -> list[JobOutcome]:
        """Updates the tasks after the forward. Returns updates, results and failures.

        `logits`: see `ModelRunner.forward`; empty for an empty batch, whose tasks know all that they need.
        """
        failed: list[JobOutcome] = []
        if step.masks is not None:
            step.masks.result()
            failed = self._cancel_failed(failed_grammars(step.rows))
        running = set(self.sample_tasks)  # some may have failed in another model since they were scheduled
        step = replace(step, rows=[(task, row) for task, row in step.rows if task in running])
        return [*failed, *self._update_tasks(step, logits)]

    def fail(self, step: ScheduledStep, error: Exception) -> list[JobOutcome]:
        """Fails the sessions of a step that raised this error, not the others."""
        return self._fail_sessions(step.batch.trees, type(error).__name__)

    def _only_resident(self, tree: TokenTree) -> bool:
        """Whether no other session holds KV, so that a `tree` without slots does not fit even alone.

        Another one that holds KV is older and asks for nothing in this step: its rows were stopped, its scores are
        known, or its grammar is being compiled. `tree` waits for it.
        """
        return all(other is tree or not other.resident for other in self.trees.values())

    def _update_tasks(self, step: ScheduledStep, logits: torch.Tensor) -> list[JobOutcome]:
        """Gives the tasks their logits, removes finished tasks and returns updates, results and failures."""
        collect_expert_logits(step.batch, logits, self.expert_tasks)
        broken = [
            *draw_next_tokens(step.batch, logits, step.rows),
            *score_answers(step.batch, logits, self.score_tasks),
            *collect_rewards(step.batch, logits, self.reward_tasks),
            *collect_prompt_logprobs(step.batch, logits, self.prompt_tasks),
        ]
        failed = self._fail_sessions(
            broken,
            f"The model's logits are not finite numbers: its arithmetic overflows in {self._info.dtype}, or its "
            "weights are damaged.",
        )
        updates = [task.flush_update() for task in self.sample_tasks]
        done = [task for task in self.tasks if isinstance(task, ScoreTask | RewardTask | PromptTask) and task.done]
        self._keep_tasks(lambda task: not task.done)
        return [*failed, *(update for update in updates if update is not None), *(task.result() for task in done)]

    def _fail_sessions(self, trees: list[TokenTree], message: str, field: str | None = None) -> list[JobOutcome]:
        """Closes these sessions without caching their KV, which may be half written, and fails their jobs."""
        failed = [task for task in self.tasks if task.tree in trees]
        for key in [key for key, tree in self.trees.items() if tree in trees]:
            self.trees[key].evict()
            self._close_tree(key)
        return [JobFailed(job, message, field) for job in dict.fromkeys(task.job.id for task in failed)]

    def _cancel_failed(self, failed: list[JobFailed]) -> list[JobOutcome]:
        for failure in failed:
            self.cancel(failure.id)
        return [*failed]

    def cancel(self, job: int) -> None:
        """Drops the job, if it still runs."""
        self._keep_tasks(lambda task: task.job.id != job)

    def close_session(self, session: int) -> None:
        """Drops the session's jobs and frees its KV, except for what the prefix cache keeps of the prompt."""
        for key in [key for key in self.trees if key == session or (isinstance(key, tuple) and key[0] == session)]:
            self._close_tree(key)

    def _close_tree(self, key: int | tuple[int, Tokens]) -> None:
        tree = self.trees.pop(key)
        self._keep_tasks(lambda task: task.tree is not tree)
        self.prefix_cache.insert(tree)

    def _keep_tasks(self, keep: Callable[[Task], bool]) -> None:
        self.sample_tasks = [task for task in self.sample_tasks if keep(task)]
        self.expert_tasks = [task for task in self.expert_tasks if keep(task)]
        self.score_tasks = [task for task in self.score_tasks if keep(task)]
        self.reward_tasks = [task for task in self.reward_tasks if keep(task)]
        self.prompt_tasks = [task for task in self.prompt_tasks if keep(task)]

    @property
    def slots_in_use(self) -> int:
        """KV slots of open sessions, without the prefix cache's."""
        return self.runner.cache.slots_used - self.prefix_cache.slots_used

    def check_integrity(self) -> None:
        """Asserts that the KV cache and every session's tree are consistent and that no region is lost."""
        self.runner.cache.check_integrity()
        for tree in self.trees.values():
            tree.check_integrity()
        assert self.slots_in_use == sum(t.region.size for t in self.trees.values() if t.region), "a lost region"
