"""Tasks: sampling and scoring jobs while they run. A task says which logits it needs next and uses them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import Future

import torch
from llguidance import LLMatcher

from w2s_core.pool.messages import (
    Expert,
    PromptJob,
    RewardJob,
    Row,
    RowUpdate,
    SampleJob,
    SampleUpdate,
    ScoreJob,
    ScoreResult,
    TokenJob,
)
from w2s_core.search.randomness import uniform
from w2s_core.types import Alternatives
from w2s_core.worker.grammar_masks import resume_states
from w2s_core.worker.logits_processors import LogitsProcessor, LogitsRules
from w2s_core.worker.sampling import Draw
from w2s_core.worker.token_tree import Node, TokenTree
from w2s_core.worker.top_logprobs import with_drawn_logprob


class RowState:
    """One answer while it is sampled. `leaf` is its last token's node.

    `tokens`, `logprobs` and `alternatives` hold what has been drawn but not reported yet.
    """

    __slots__ = (
        "alternatives",
        "answer_length",
        "done",
        "ending",
        "index",
        "key",
        "leaf",
        "logprobs",
        "processor",
        "remaining",
        "tokens",
    )

    def __init__(self, index: int, leaf: Node, row: Row, rules: LogitsRules | None) -> None:
        self.index = index
        self.leaf = leaf
        self.processor = LogitsProcessor(rules, row.tokens) if rules else None
        self.key = row.key
        self.answer_length = len(row.tokens)  # hence the position of the next draw
        self.remaining = row.length  # tokens that may still be drawn
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.alternatives: list[Alternatives] = []
        self.ending: int | None = None
        self.done = False

    def flush(self) -> RowUpdate:
        """What has been drawn since the last flush."""
        update = RowUpdate(
            self.index,
            tuple(self.tokens),
            tuple(self.logprobs),
            self.ending,
            self.done,
            tuple(self.alternatives),
        )
        self.tokens, self.logprobs, self.alternatives = [], [], []
        return update


class SampleTask:
    """A running SampleJob. Every live row needs the logits after its leaf and draws one token from them.

    The `promised` of the methods are nodes whose logits other models of the same base have in the same step.
    """

    def __init__(
        self, job: SampleJob, tree: TokenTree, eos: frozenset[int], compiling: Future[LLMatcher] | None = None
    ) -> None:
        """`compiling` resolves to the initial matcher of the job's grammar; None without a grammar."""
        self.job = job
        self.tree = tree
        self.compiling = compiling  # None once the rows have their grammar states
        self._end_tokens = (frozenset() if job.sampling.ignore_eos else eos) | frozenset(job.sampling.stop_token_ids)
        self._rules = LogitsRules(job.sampling, job.prompt, eos) if job.sampling.needs_processor else None
        self.rows = [RowState(i, tree.insert(row.tokens), row, self._rules) for i, row in enumerate(job.rows)]
        self.experts: list[ExpertTask] = []  # in the order of the job's experts
        self._unreported = 0  # as told in the last update

    @property
    def waiting_for_grammar(self) -> bool:
        """Whether the rows cannot be sampled yet because their grammar is not compiled."""
        return self.compiling is not None

    def start_grammar(self) -> None:
        """Gives every row its grammar state if the job's grammar has been compiled since the last call.

        Raises what compiling raised.
        """
        if self.compiling is None or not self.compiling.done():
            return
        assert self.job.sampling.grammar is not None
        assert self._rules is not None
        states = resume_states(
            self.leaves, self.job.sampling.grammar.source, self.compiling.result(), self._rules.end_token_bits
        )
        for row, state in zip(self.rows, states, strict=True):
            assert row.processor is not None
            row.processor.grammar = state
        self.compiling = None

    @property
    def done(self) -> bool:
        return all(row.done for row in self.rows)

    @property
    def live_rows(self) -> list[RowState]:
        return [row for row in self.rows if not row.done]

    @property
    def leaves(self) -> list[Node]:
        return [row.leaf for row in self.rows]

    def needed_nodes(self, promised: Container[Node]) -> Iterator[Node]:
        """The nodes after which the task needs logits: the leaf of every live row that waits for no other model's."""
        return (
            row.leaf
            for row in self.rows
            if not row.done
            and not self.waiting_for_grammar
            and all(expert.same_model or expert.will_have_logits(row, promised) for expert in self.experts)
        )

    def can_draw(self, row: RowState, logits_rows: Container[Node], promised: Container[Node]) -> bool:
        """Whether all logits that the row's draw needs are there, in the batch that has these `logits_rows`, or
        promised."""
        return row.leaf in logits_rows and all(
            expert.will_have_logits(row, promised) or expert.leaves[row.index] in logits_rows for expert in self.experts
        )

    def draw(self, row: RowState) -> Draw:
        """How this row's next token is drawn."""
        return Draw(self.job.sampling, uniform(row.key, row.answer_length), row.processor, bool(self.experts))

    def append(self, row: RowState, token: int, logprob: float) -> None:
        """Adds a drawn token to the row, or ends the row if it is an end token or the last that may be drawn."""
        row.logprobs.append(logprob)
        if self.job.sampling.alternatives:
            row.alternatives[-1] = with_drawn_logprob(row.alternatives[-1], token, logprob)
        row.remaining -= 1
        row.answer_length += 1
        if token in self._end_tokens:
            row.ending = token
        else:
            row.tokens.append(token)
            row.leaf = row.leaf.child(token)
            if row.processor is not None:
                row.processor.append(token)
            for expert in self.experts:
                expert.append(row, token)
        row.done = row.ending is not None or row.remaining == 0
        if row.done and row.processor is not None and row.ending is None:
            row.leaf.grammar_state = row.processor.grammar

    def stop(self, rows: Sequence[int]) -> None:
        """Ends these rows without reporting what they have drawn since the last update."""
        for index in rows:
            self.rows[index].done = True
            self.rows[index].flush()

    def flush_update(self) -> SampleUpdate | None:
        """The update after a step: rows that are done or have `report_every` new tokens. None if nothing is new."""
        finished = not self.live_rows
        due = [r for r in self.rows if r.logprobs and (r.done or len(r.logprobs) >= self.job.report_every)]
        rows = tuple(row.flush() for row in due)
        unreported = sum(len(row.logprobs) for row in self.rows)
        if not rows and not finished and unreported == self._unreported:
            return None
        self._unreported = unreported
        return SampleUpdate(self.job.id, rows, finished, unreported, self.tree.cached_tokens)


class ExpertTask:
    """An expert's part in a running SampleJob. It needs the expert's logits after every live row's answer so far.

    `logits` maps a row's index to those for its next draw: a tensor (rows, vocab) and the index of the row in it.
    """

    def __init__(self, sample: SampleTask, expert: Expert, tree: TokenTree) -> None:
        self.job = sample.job
        self.tree = tree
        self.expert = expert
        self.leaves = [tree.insert(tuple(filter(self._reads, row.tokens))) for row in self.job.rows]
        self.logits: dict[int, tuple[torch.Tensor, int]] = {}
        self._sample = sample
        sample.experts.append(self)

    @property
    def same_model(self) -> bool:
        """Whether the expert is the large model itself, with a prompt of its own: one batch then has both logits."""
        return self.expert.model == self.job.model

    @property
    def done(self) -> bool:
        return not self._sample.live_rows

    def has_logits(self, row: RowState) -> bool:
        return row.index in self.logits

    def will_have_logits(self, row: RowState, promised: Container[Node]) -> bool:
        """Whether the row's logits are there, or are promised: this step's forward has them, see `SampleTask`."""
        return self.has_logits(row) or self.leaves[row.index] in promised

    def needed_nodes(self) -> Iterator[Node]:
        """The nodes after which the task needs logits."""
        return (node for _, node in self._missing())

    def found(self, logits_rows: Mapping[Node, int]) -> list[tuple[RowState, int]]:
        """The rows whose missing logits are in this batch, each with the batch's row of those logits."""
        return [(row, logits_rows[node]) for row, node in self._missing() if node in logits_rows]

    def append(self, row: RowState, token: int) -> None:
        """Reads the row's next token."""
        del self.logits[row.index]
        if self._reads(token):
            self.leaves[row.index] = self.leaves[row.index].child(token)

    def _missing(self) -> Iterator[tuple[RowState, Node]]:
        return ((row, self.leaves[row.index]) for row in self._sample.live_rows if not self.has_logits(row))

    def _reads(self, token: int) -> bool:
        return token < self.expert.vocabulary


class ScoreTask:
    """A running ScoreJob. It needs the logits before every token whose log-probability is unknown."""

    def __init__(self, job: ScoreJob, tree: TokenTree) -> None:
        self.job = job
        self.tree = tree
        self.tokens_run = 0
        self.leaves = [tree.insert(answer) for answer in job.answers]
        # Parents before children, so that a child's sum finds its parent's.
        self._unscored = sorted(_unscored_nodes(self.leaves), key=lambda node: node.position)

    @property
    def done(self) -> bool:
        return not self._unscored

    def needed_nodes(self) -> Iterator[Node]:
        """The nodes after which the task needs logits: the parents of its unscored nodes."""
        return iter(dict.fromkeys(node.parent for node in self._unscored if node.parent is not None))

    def scorable(self, logits_rows: Mapping[Node, int]) -> list[tuple[Node, int]]:
        """The unscored nodes whose parent's logits are in this batch, each with the row of those logits."""
        return [
            (node, logits_rows[node.parent])
            for node in self._unscored
            if node.parent is not None and node.parent in logits_rows
        ]

    def drop_scored(self) -> None:
        """Removes the nodes that have got their log-probability from the list of unscored ones."""
        self._unscored = [node for node in self._unscored if node.logprob is None]

    def result(self) -> ScoreResult:
        return ScoreResult(self.job.id, tuple(leaf.logprob or 0.0 for leaf in self.leaves), self.tokens_run)


def unknown_token(job: TokenJob, vocabulary: int) -> int | None:
    """A token id of the job that is not in [0, vocabulary); None if there is none."""
    match job:
        case SampleJob():
            answers = [row.tokens for row in job.rows]
        case ScoreJob() | RewardJob():
            answers = list(job.answers)
        case PromptJob():
            answers = []
    ends = {end(tokens) for tokens in (job.prompt, *answers) if tokens for end in (min, max)}
    return next((token for token in ends if not 0 <= token < vocabulary), None)


def _unscored_nodes(leaves: Sequence[Node]) -> set[Node]:
    """The leaves and their ancestors whose `logprob` is unknown."""
    unscored: set[Node] = set()
    for leaf in leaves:
        node: Node | None = leaf
        while node is not None and node.logprob is None and node not in unscored:
            unscored.add(node)
            node = node.parent
    return unscored
