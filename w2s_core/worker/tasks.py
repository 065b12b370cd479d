"""Jobs while they run: what they want to know next, and what they make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future

from llguidance import LLMatcher

from w2s_core.pool.messages import Row, RowUpdate, SampleJob, SampleUpdate, ScoreJob, ScoreResult
from w2s_core.search.randomness import uniform
from w2s_core.types import Alternatives
from w2s_core.worker.grammar_masks import resume_states
from w2s_core.worker.logits_processors import LogitsProcessor, LogitsRules
from w2s_core.worker.sampling import Draw
from w2s_core.worker.token_tree import Node, TokenTree
from w2s_core.worker.top_logprobs import with_drawn_logprob


class RowState:
    """One answer that grows. `leaf` is its last token's node; `tokens`, `logprobs` and `alternatives` are not reported
    yet."""

    __slots__ = (
        "adjustment",
        "alternatives",
        "done",
        "ending",
        "index",
        "key",
        "leaf",
        "logprobs",
        "position",
        "remaining",
        "tokens",
    )

    def __init__(self, index: int, leaf: Node, row: Row, adjustments: LogitsRules | None) -> None:
        self.index = index
        self.leaf = leaf
        self.adjustment = LogitsProcessor(adjustments, row.tokens) if adjustments else None
        self.key = row.key
        self.position = len(row.tokens)  # in the answer, of the token to be drawn next
        self.remaining = row.length
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.alternatives: list[Alternatives] = []
        self.ending: int | None = None
        self.done = False

    def news(self) -> RowUpdate:
        """What is not reported yet."""
        return RowUpdate(
            self.index,
            tuple(self.tokens),
            tuple(self.logprobs),
            self.ending,
            self.done,
            tuple(self.alternatives),
        )

    def forget(self) -> None:
        """It is reported."""
        self.tokens, self.logprobs, self.alternatives = [], [], []


class SampleTask:
    """A SampleJob: every live row wants its leaf's logits and draws one token from them."""

    def __init__(
        self, job: SampleJob, tree: TokenTree, eos: frozenset[int], beginning: Future[LLMatcher] | None = None
    ) -> None:
        """`beginning` is that of the job's grammar."""
        self.job = job
        self.tree = tree
        self.beginning = beginning
        self._ends = (frozenset() if job.sampling.ignore_eos else eos) | frozenset(job.sampling.stop_token_ids)
        self._adjustments = LogitsRules(job.sampling, job.prompt, eos) if job.sampling.adjusts else None
        self.rows = [RowState(i, tree.insert(row.tokens), row, self._adjustments) for i, row in enumerate(job.rows)]

    def enter_grammar(self) -> None:
        """Where the job waits for its grammar and that is there: gives every row its place in it. Raises what the
        compiling raised."""
        if self.beginning is None or not self.beginning.done():
            return
        assert self.job.sampling.grammar is not None
        assert self._adjustments is not None
        found = resume_states(
            self.leaves, self.job.sampling.grammar.source, self.beginning.result(), self._adjustments.end_bits
        )
        for row, place in zip(self.rows, found, strict=True):
            assert row.adjustment is not None
            row.adjustment.grammar = place
        self.beginning = None

    @property
    def live(self) -> list[RowState]:
        return [row for row in self.rows if not row.done]

    @property
    def leaves(self) -> list[Node]:
        return [row.leaf for row in self.rows]

    def wanted(self) -> Iterator[Node]:
        return (row.leaf for row in self.rows if not row.done and self.beginning is None)

    def draw(self, row: RowState) -> Draw:
        """How this row's next token is drawn."""
        return Draw(self.job.sampling, uniform(row.key, row.position), row.adjustment)

    def append(self, row: RowState, token: int, logprob: float) -> None:
        """The row's next token, drawn."""
        row.logprobs.append(logprob)
        if self.job.sampling.alternatives:
            row.alternatives[-1] = with_drawn_logprob(row.alternatives[-1], token, logprob)
        row.remaining -= 1
        row.position += 1
        if token in self._ends:
            row.ending = token
        else:
            row.tokens.append(token)
            row.leaf = row.leaf.child(token)
            if row.adjustment is not None:
                row.adjustment.append(token)
        row.done = row.ending is not None or row.remaining == 0
        if row.done and row.adjustment is not None and row.ending is None:
            row.leaf.grammar_state = row.adjustment.grammar

    def stop(self, rows: Sequence[int]) -> None:
        """These rows need no more tokens; nothing more is said of them."""
        for index in rows:
            self.rows[index].done = True
            self.rows[index].forget()

    def news(self) -> SampleUpdate | None:
        """What has not been told yet, when it is time to tell it."""
        finished = not self.live
        due = [r for r in self.rows if r.logprobs and (r.done or len(r.logprobs) >= self.job.report_every)]
        if not due and not finished:
            return None
        news = tuple(row.news() for row in due)
        for row in due:
            row.forget()
        return SampleUpdate(self.job.id, news, finished)


class ScoreTask:
    """A ScoreJob: wants the logits before every token whose log-probability is unknown."""

    def __init__(self, job: ScoreJob, tree: TokenTree) -> None:
        self.job = job
        self.tree = tree
        self.tokens_run = 0
        self.leaves = [tree.insert(answer) for answer in job.answers]
        # Parents before children, so that a child's sum finds its parent's.
        self._unknown = sorted(_without_logprob(self.leaves), key=lambda node: node.position)

    @property
    def done(self) -> bool:
        return not self._unknown

    def wanted(self) -> Iterator[Node]:
        return iter(dict.fromkeys(node.parent for node in self._unknown if node.parent is not None))

    def pending(self, rows: Mapping[Node, int]) -> list[tuple[Node, int]]:
        """Nodes that can be scored now, each with the row of its parent's logits."""
        return [(node, rows[node.parent]) for node in self._unknown if node.parent is not None and node.parent in rows]

    def settle(self) -> None:
        """Forgets what has become known."""
        self._unknown = [node for node in self._unknown if node.logprob is None]

    def result(self) -> ScoreResult:
        return ScoreResult(self.job.id, tuple(leaf.logprob or 0.0 for leaf in self.leaves), self.tokens_run)


def _without_logprob(leaves: Sequence[Node]) -> set[Node]:
    unknown: set[Node] = set()
    for leaf in leaves:
        node: Node | None = leaf
        while node is not None and node.logprob is None and node not in unknown:
            unknown.add(node)
            node = node.parent
    return unknown
