"""Request telemetry: follows one request from arrival to end and writes its metrics, spans and `RequestRecord`."""

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

_OUTCOMES: Mapping[tuple[type[BaseException], ...], RequestOutcome] = {
    (RequestError,): "invalid",
    (OverloadedError,): "overloaded",
    (UnavailableError,): "unavailable",
    (UpstreamError,): "upstream",
    (DeadlineError,): "timeout",
    (asyncio.CancelledError, GeneratorExit): "cancelled",
}


@dataclass(slots=True)
class _Progress:
    """How far the answers are. `last_text_s` maps a choice to the time of its last text, in seconds since arrival."""

    last_text_s: dict[int, float] = field(default_factory=dict)
    truncated: bool = False  # a choice ended with finish_reason "length"
    complete: bool = False  # RequestFinished was sent


class RequestObserver:
    """Observes one request; `with` spans it from arrival to end.

    `labels` are its served model and method for metrics. The model is None if the client named one that is not served:
    such a request is not counted by model, so that clients cannot create label values.
    """

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
        self._arrival = time.perf_counter()
        self._proposals: list[Proposals] = []
        self._scorings: list[Scoring] = []
        self._progress = _Progress()

    def __enter__(self) -> Self:
        self._metrics.request_arrived()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        record = self.record
        record.total_s = self.elapsed()
        record.outcome = self._outcome(error)
        record.sampled_tokens = sum(proposals.sampled_tokens for proposals in self._proposals)
        record.scored_tokens = sum(scoring.scored_tokens for scoring in self._scorings)
        self._metrics.request_left(admitted=record.queue_s is not None)
        if record.served_model is not None:
            self._metrics.request_ended(record.served_model, record.method, record.outcome, record.total_s)
        if record.outcome not in REFUSED:
            self._metrics.count_tokens(
                prompt=record.prompt_tokens, returned=record.returned_tokens, searched=record.sampled_tokens
            )
        if self._trace:
            self._trace.end(record)

    def on_planned(self, plans: Sequence[Plan]) -> None:
        """The request is valid and has been planned."""
        guidance = plans[0].guidance
        self.record.method = guidance.method if guidance else "none"
        self.record.rows = sum(plan.rows for plan in plans)

    def on_admitted(self) -> None:
        """One of the request's prompts has been granted its rows."""
        queue_s = self.elapsed()
        first = self.record.queue_s is None
        if first:
            self.record.queue_s = queue_s
        self._metrics.prompt_admitted(first=first, queue_s=queue_s)

    def on_event(self, event: Event) -> None:
        """Records an event that is about to be sent to the client."""
        match event:
            case TextCommitted():
                self._on_text(event)
            case ChoiceFinished():
                self._progress.truncated |= event.hypothesis.finish_reason == "length"
                if self.record.keeps_texts:
                    self.record.answers.append(event.hypothesis.text)
            case RequestFinished():
                self._progress.complete = True
                self.record.prompt_tokens = event.prompt_tokens
                self.record.returned_tokens = event.completion_tokens

    def _on_text(self, event: TextCommitted) -> None:
        now = self.elapsed()
        if self.record.first_token_s is None:
            self.record.first_token_s = now
            self._metrics.first_text_sent(now)
        if event.index in self._progress.last_text_s:
            self._metrics.next_text_sent(now - self._progress.last_text_s[event.index])
        self._progress.last_text_s[event.index] = now
        self.record.prompt_tokens, self.record.returned_tokens = event.prompt_tokens, event.completion_tokens

    def count_proposals(self, proposals: Proposals) -> None:
        """Includes the session's sampled tokens in the record, however the request ends."""
        self._proposals.append(proposals)

    def trace_proposals(self, proposer: Proposer) -> Proposer:
        """The proposer, with a span around every call if tracing is on."""
        return self._trace.trace_proposals(proposer) if self._trace else proposer

    def trace_sampling(self, growing: AsyncGenerator[Hypothesis]) -> AsyncGenerator[Hypothesis]:
        """The stream of a plain choice's growing hypothesis, in one span if tracing is on."""
        return self._trace.trace_sampling(growing) if self._trace else growing

    def observe_scoring(self, scoring: Scoring) -> Scoring:
        """The scoring session, traced, with its scored tokens included in the record however the request ends."""
        self._scorings.append(scoring)
        return self._trace.trace_scoring(scoring) if self._trace else scoring

    async def observe_rounds(self, rounds: AsyncGenerator[Round], *, pair_scored: bool) -> AsyncGenerator[Round]:
        """The rounds of a search, counted and traced."""
        if self._trace:
            rounds = self._trace.trace_rounds(rounds)
        async with aclosing(rounds):
            async for round_ in rounds:
                self._metrics.count_round(round_, pair_scored=pair_scored)
                self.record.chunks += 1
                yield round_

    def elapsed(self) -> float:
        """Seconds since the request's arrival."""
        return time.perf_counter() - self._arrival

    def _outcome(self, error: BaseException | None) -> RequestOutcome:
        if self._progress.complete:  # a client that disconnects after the last event has its answer
            return "length" if self._progress.truncated else "stop"
        for error_types, outcome in _OUTCOMES.items():
            if isinstance(error, error_types):
                return outcome
        return "error"


class MeteredScorer:
    """A scorer whose tokens are counted under `name`, the pair's name in the configuration."""

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
