"""OpenTelemetry tracing. Spans nest as request → chunk → propose, expect, score → remote call.

Their attributes are counts and configured names, never texts. This is the only module that imports opentelemetry, and
it is imported only if `traces` is on.

Generators never leave a span current across a `yield`, because the consumer may resume them in another context.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from w2s_core.interfaces import Proposer, Scoring
from w2s_core.remote.provider import Attempt
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import Hypothesis, ProviderUsage, Round, Score

T = TypeVar("T")
_CALLER_CONTEXT = TraceContextTextMapPropagator()  # reads W3C traceparent and tracestate headers
_OK_OUTCOMES = ("stop", "length", "cancelled")


def otlp_tracing() -> Tracing:
    """Tracing that exports spans by OTLP over HTTP, configured by the standard OTEL_* environment variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    resource = Resource({SERVICE_NAME: "w2s"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Makes the spans of an engine, with which it is started and stopped. Stopping flushes pending spans."""

    ready = True

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("w2s")

    async def start(self) -> None:
        """Does nothing: a collector that is down must not keep the engine from starting."""

    async def stop(self) -> None:
        await asyncio.to_thread(self._provider.shutdown)

    def request(self, caller: Mapping[str, str]) -> RequestTrace:
        """Starts a request's span, as a child of the caller's if its headers carry a trace context."""
        return RequestTrace(self._tracer, caller)

    def remote_attempt(self, attempt: Attempt) -> None:
        """Records a call to a provider that has just ended, as a child of the current span, if there is one."""
        if not get_current_span().get_span_context().is_valid:
            return
        now = time.time_ns()
        span = self._tracer.start_span(
            "remote call",
            kind=SpanKind.CLIENT,
            start_time=now - round(attempt.seconds * 1e9),
            attributes={"w2s.provider": attempt.provider, "w2s.status": attempt.status, "w2s.attempt": attempt.number},
        )
        span.end(now)


class RequestTrace:
    """The span of one request, and the wrappers that make its child spans."""

    def __init__(self, tracer: Tracer, caller: Mapping[str, str]) -> None:
        self._tracer = tracer
        self._span = tracer.start_span("request", context=_CALLER_CONTEXT.extract(caller), kind=SpanKind.SERVER)
        self._context = set_span_in_context(self._span)

    @property
    def id(self) -> str:
        """The trace id in hexadecimal, as collectors show it."""
        return format_trace_id(self._span.get_span_context().trace_id)

    def end(self, record: RequestRecord) -> None:
        """Ends the request's span, with the record as its attributes."""
        attributes = {
            "served_model": record.served_model,
            "method": record.method,
            "outcome": record.outcome,
            "rows": record.rows,
            "chunks": record.chunks,
            "prompt_tokens": record.prompt_tokens,
            "returned_tokens": record.returned_tokens,
            "sampled_tokens": record.sampled_tokens,
            "scored_tokens": record.scored_tokens,
            "queue_s": record.queue_s,
        }
        self._span.set_attributes({f"w2s.{name}": value for name, value in attributes.items() if value is not None})
        if record.outcome not in _OK_OUTCOMES:
            self._span.set_status(StatusCode.ERROR, record.outcome)
        self._span.end()

    def trace_proposals(self, proposer: Proposer) -> Proposer:
        """Wraps a proposer: every call becomes a span."""
        return _TracedProposer(proposer, self._tracer)

    async def trace_sampling(self, growing: AsyncGenerator[Hypothesis]) -> AsyncGenerator[Hypothesis]:
        """Wraps the stream of a plain choice: one "propose" span covers the whole answer."""
        span = self._tracer.start_span("propose", context=self._context, attributes={"w2s.rows": 1})
        try:
            async with aclosing(growing):
                while (longer := await _next(growing, span)) is not None:
                    yield longer
        finally:
            span.end()

    def trace_scoring(self, scoring: Scoring) -> Scoring:
        """Wraps a scoring session: every call becomes a span."""
        return _TracedScoring(scoring, self._tracer)

    async def trace_rounds(self, rounds: AsyncGenerator[Round]) -> AsyncGenerator[Round]:
        """Wraps the rounds of a search: each becomes a span, the parent of its proposing and scoring."""
        async with aclosing(rounds):
            while True:
                span = self._tracer.start_span("chunk", context=self._context)
                try:
                    round_ = await _next(rounds, span)
                except BaseException:
                    span.end()
                    raise
                if round_ is None:
                    return  # the search is over; a span that is not ended is never exported
                span.set_attributes({"w2s.candidates": len(round_.candidates), "w2s.kept": len(round_.beam)})
                span.end()
                yield round_


class _TracedProposer:
    def __init__(self, proposer: Proposer, tracer: Tracer) -> None:
        self._inner = proposer
        self._tracer = tracer

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        span = self._tracer.start_span("propose", attributes={"w2s.rows": len(beam) * k, "w2s.length": length})
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            return await self._inner.propose(beam, k=k, length=length)


class _TracedScoring:
    def __init__(self, scoring: Scoring, tracer: Tracer) -> None:
        self._inner = scoring
        self._tracer = tracer

    @property
    def scored_tokens(self) -> int:
        return self._inner.scored_tokens

    @property
    def provider_usage(self) -> ProviderUsage:
        return self._inner.provider_usage

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        span = self._tracer.start_span("expect", attributes={"w2s.candidates": len(candidates)})
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            await self._inner.prefetch(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        span = self._tracer.start_span("score", attributes={"w2s.candidates": len(candidates)})
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            return await self._inner.score(candidates)


async def _next(source: AsyncGenerator[T], span: Span) -> T | None:
    """The next item of `source`, or None at its end, computed with `span` as the current span."""
    with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
        return await anext(source, None)
