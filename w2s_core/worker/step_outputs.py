"""What tasks do with one forward's logits: draw tokens, sum scores, collect rewards and prompt log-probabilities.

Each function returns the sessions whose log-probabilities are not finite: float16 overflowed, or weights are damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch

from w2s_core.worker.batch import Batch
from w2s_core.worker.prompt_task import PromptTask
from w2s_core.worker.proxy_tuning import combine_logits
from w2s_core.worker.reward_task import RewardTask
from w2s_core.worker.sampling import draw_tokens
from w2s_core.worker.tasks import RowState, SampleTask, ScoreTask
from w2s_core.worker.token_tree import TokenTree
from w2s_core.worker.top_logprobs import top_logprobs
from w2s_core.worker.transfer import long_tensor, select_rows


def draw_next_tokens(
    batch: Batch, logits: torch.Tensor, rows: Sequence[tuple[SampleTask, RowState]]
) -> list[TokenTree]:
    """Draws each row's next token from its leaf's logits and appends it to the row."""
    if not rows:
        return []
    row_logits = select_rows(logits, [batch.logits_rows[row.leaf] for _, row in rows])
    _collect_top_logprobs(row_logits, rows)
    draws = [task.draw(row) for task, row in rows]
    steered = combine_logits(row_logits, rows)
    tokens, logprobs = draw_tokens(steered, draws, None if steered is row_logits else row_logits)
    broken: list[TokenTree] = []
    for (task, row), token, logprob in zip(rows, tokens, logprobs, strict=True):
        if isfinite(logprob):
            task.append(row, token, logprob)
        else:
            broken.append(task.tree)
    return broken


def _collect_top_logprobs(logits: torch.Tensor, rows: Sequence[tuple[SampleTask, RowState]]) -> None:
    """Adds top logprobs to the rows whose job asked for them: of the raw logits, before temperature and penalties."""
    asking = [i for i, (task, _) in enumerate(rows) if task.job.sampling.alternatives]
    if not asking:
        return
    most = max(rows[i][0].job.sampling.alternatives for i in asking)
    asked_logits = logits if len(asking) == len(logits) else logits[long_tensor(asking, logits.device)]
    for i, alternatives in zip(asking, top_logprobs(asked_logits, most), strict=True):
        task, row = rows[i]
        row.alternatives.append(alternatives[: task.job.sampling.alternatives])


def score_answers(batch: Batch, logits: torch.Tensor, tasks: Sequence[ScoreTask]) -> list[TokenTree]:
    """Sets the log-probability of every node whose parent's logits are in the batch: its parent's plus its token's."""
    scorable = [(task, node, row) for task in tasks for node, row in task.scorable(batch.logits_rows)]
    broken: list[TokenTree] = []
    if scorable:
        rows = long_tensor([row for _, _, row in scorable], logits.device)
        tokens = long_tensor([node.token for _, node, _ in scorable], logits.device)
        values = (logits[rows, tokens] - logits.logsumexp(1)[rows]).tolist()
        for (task, node, _), nats in sorted(zip(scorable, values, strict=True), key=lambda item: item[0][1].position):
            assert node.parent is not None
            assert node.parent.logprob is not None
            node.logprob = node.parent.logprob + nats
            if not isfinite(nats):
                broken.append(task.tree)
    for task in tasks:
        task.drop_scored()
    return broken


def collect_rewards(batch: Batch, outputs: torch.Tensor, tasks: Sequence[RewardTask]) -> list[TokenTree]:
    """Gives every leaf whose reward is in the batch that reward. `outputs` (M, 1): see `reward_model.RewardModel`."""
    found = [(task, node, row) for task in tasks for node, row in task.found(batch.logits_rows)]
    if not found:
        return []
    rewards = outputs[:, 0].tolist()
    for _, node, row in found:
        node.reward = rewards[row]
    return [task.tree for task, _, row in found if not isfinite(rewards[row])]


def collect_prompt_logprobs(batch: Batch, logits: torch.Tensor, tasks: Sequence[PromptTask]) -> list[TokenTree]:
    """Gives each prompt task the logits after its prompt's tokens in the batch."""
    broken: list[TokenTree] = []
    for task in tasks:
        prompt_logits = logits[batch.prompt_logits_rows(task.tree)]
        if len(prompt_logits) and not all(map(isfinite, task.add_logits(prompt_logits))):
            broken.append(task.tree)
    return broken
