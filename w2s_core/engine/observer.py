"""One request, seen from beside it: what it counts for, and what its line in the log will say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from w2s_core.engine.events import ChoiceFinished, Event, RequestFinished, TextCommitted
from w2s_core.engine.planning import Plan
from w2s_core.errors import (
    DeadlineError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UpstreamError,
)
from w2s_core.interfaces import Proposals, Proposer, Scorer, Scoring
from w2s_core.telemetry.metrics import REFUSED, Metrics, RequestOutcome
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import GenerationRequest, Hypothesis, Method, Prompt, Round

if TYPE_CHECKING:
    from w2s_core.telemetry.tracing import Tracing


@dataclass(slots=True)
class _Tally:
    """What has come of it so far. `latest`: when choice i last sent text."""

    latest: dict[int, float] = field(default_factory=dict)
    cut: bool = False
    complete: bool = False


class RequestObserver:
    """`with`: from the request's arrival to its end. `labels`: its served model and method; a model that is not ours is
    None and counts nowhere."""

    def __init__(
        self,
        metrics: Metrics,
        request: GenerationRequest,
        labels: tuple[str | None, Method],
        record: RequestRecord | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.record = record or RequestRecord()
        self._trace = tracing.request(self.record.caller) if tracing else None
        self.record.trace_id = self._trace.id if self._trace else None
        self.record.served_model, self.record.method = labels
        if self.record.keeps_texts:
            self.record.prompts = request.prompts
        self._metrics = metrics
        self._began = time.perf_counter()
        self._drawn: list[Proposals] = []
        self._scored: list[Scoring] = []
        self._tally = _Tally()

    def __enter__(self) -> Self:
        self._metrics.request_arrived()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = self.record
        record.total_s = self._elapsed()
        record.outcome = self._outcome(error)
        record.sampled_tokens = sum(proposals.sampled_tokens for proposals in self._drawn)
        record.scored_tokens = sum(scoring.scored_tokens for scoring in self._scored)
        self._metrics.request_left(admitted=record.queue_s is not None)
        if record.served_model is not None:
            self._metrics.request_ended(record.served_model, record.method, record.outcome, record.total_s)
        if record.outcome not in REFUSED:
            self._metrics.count_tokens(
                prompt=record.prompt_tokens, returned=record.returned_tokens, searched=record.sampled_tokens
            )
        if self._trace:
            self._trace.end(record)

    def planned(self, plans: Sequence[Plan]) -> None:
        """It can be served."""
        guidance = plans[0].guidance
        self.record.method = guidance.method if guidance else "none"
        self.record.rows = sum(plan.rows for plan in plans)

    def admitted(self) -> None:
        """One of its prompts begins."""
        waited = self._elapsed()
        first = self.record.queue_s is None
        if first:
            self.record.queue_s = waited
        self._metrics.prompt_admitted(first=first, queue_s=waited)

    def draws(self, proposals: Proposals) -> None:
        """Counted at the end, however that comes."""
        self._drawn.append(proposals)

    def proposes(self, proposer: Proposer) -> Proposer:
        """The same, traced."""
        return self._trace.proposes(proposer) if self._trace else proposer

    def grows(self, growing: AsyncGenerator[Hypothesis]) -> AsyncGenerator[Hypothesis]:
        """The same, traced."""
        return self._trace.grows(growing) if self._trace else growing

    def scores(self, scoring: Scoring) -> Scoring:
        """The same, traced, and counted at the end."""
        self._scored.append(scoring)
        return self._trace.scores(scoring) if self._trace else scoring

    def event(self, event: Event) -> None:
        """Sees what the caller is about to get."""
        match event:
            case TextCommitted():
                self._text(event)
            case ChoiceFinished():
                self._tally.cut |= event.hypothesis.finish_reason == "length"
                if self.record.keeps_texts:
                    self.record.answers.append(event.hypothesis.text)
            case RequestFinished():
                self._tally.complete = True
                self.record.prompt_tokens = event.prompt_tokens
                self.record.returned_tokens = event.completion_tokens

    def _text(self, event: TextCommitted) -> None:
        now = self._elapsed()
        if self.record.first_token_s is None:
            self.record.first_token_s = now
            self._metrics.first_text_sent(now)
        if event.index in self._tally.latest:
            self._metrics.next_text_sent(now - self._tally.latest[event.index])
        self._tally.latest[event.index] = now
        self.record.prompt_tokens, self.record.returned_tokens = event.prompt_tokens, event.completion_tokens

    async def rounds(
        self, rounds: AsyncGenerator[Round], beam: Sequence[Hypothesis], *, k: int, ranked: bool
    ) -> AsyncGenerator[Round]:
        """The same rounds of a search that starts from `beam`, counted."""
        if self._trace:
            rounds = self._trace.chunks(rounds)
        async with aclosing(rounds):
            async for chunk in rounds:
                drawn = k * sum(not y.finished for y in beam)
                self._metrics.count_chunk(chunk, drawn=drawn, ranked=ranked)
                self.record.chunks += 1
                beam = chunk.beam
                yield chunk

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    def _outcome(self, error: BaseException | None) -> RequestOutcome:
        if self._tally.complete:  # a reader that leaves after the last event has its answer
            return "length" if self._tally.cut else "stop"
        for kinds, outcome in _OUTCOMES.items():
            if isinstance(error, kinds):
                return outcome
        return "error"


_OUTCOMES: Mapping[tuple[type[BaseException], ...], RequestOutcome] = {
    (RequestError,): "invalid",
    (OverloadedError,): "overloaded",
    (UnavailableError,): "unavailable",
    (UpstreamError,): "upstream",
    (DeadlineError,): "timeout",
    (asyncio.CancelledError, GeneratorExit): "cancelled",
}


class MeteredScorer:
    """A pair that counts, by the name it has in the configuration, what is run through it."""

    def __init__(self, name: str, scorer: Scorer, metrics: Metrics) -> None:
        self._name = name
        self._scorer = scorer
        self._metrics = metrics

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return self._scorer.check(prompt, max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[Scoring]:
        async with self._scorer.open(prompt) as scoring:
            try:
                yield scoring
            finally:
                self._metrics.count_scored_tokens(self._name, scoring.scored_tokens)
