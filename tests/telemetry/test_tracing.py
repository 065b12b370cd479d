"""Tracing: the spans of a request, collected in memory, and that tracing costs nothing when it is off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.fakes import DEFAULT_GUIDANCE, FakeLargeModel, FakeProposals, FakeScorer, answer, letters
from w2s_core.config import Limits, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.errors import DeadlineError
from w2s_core.remote.provider import Attempt
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.telemetry.tracing import Tracing
from w2s_core.types import GenerationRequest, Hypothesis, SamplingParams, TextPrompt, Tokens

ASK = GenerationRequest("guided", (TextPrompt("secret words"),), SamplingParams(max_tokens=6, seed=1))
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class CallingModel(FakeLargeModel):
    """Tells of a provider's call within every propose, from a task of its own as real ones are made."""

    def __init__(self, tracing: Tracing) -> None:
        super().__init__(letters(eos=0.0))
        self.tracing = tracing

    @asynccontextmanager
    async def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AsyncIterator[FakeProposals]:
        async with super().open(prompt, sampling, rows=rows) as proposals:
            yield CallingProposals(self, prompt, sampling)
            assert proposals.sampled_tokens == 0


class CallingProposals(FakeProposals):
    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        assert isinstance(self._model, CallingModel)
        await asyncio.gather(self._call(self._model.tracing))
        return await super().propose(beam, k=k, length=length)

    async def _wait(self) -> None:
        assert isinstance(self._model, CallingModel)
        await self._call(self._model.tracing)
        await super()._wait()

    @staticmethod
    async def _call(tracing: Tracing) -> None:
        tracing.remote_attempt(Attempt("far", "200", 0.25, 1))


class Spans:
    """An engine whose spans stay here."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)

    def engine(self, large: FakeLargeModel | None = None, limits: Limits | None = None) -> Engine:
        served = {"plain": ServedModelConfig("large"), "guided": ServedModelConfig("large", DEFAULT_GUIDANCE)}
        models = {"large": large or FakeLargeModel(letters(eos=0.0))}
        return Engine(models, {"positive": FakeScorer()}, served, limits=limits, tracing=self.tracing)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def parents(self, name: str) -> set[str | None]:
        """Names of the spans under which those of this name hang."""
        names = {span.context.span_id: span.name for span in self.exporter.get_finished_spans() if span.context}
        return {names[span.parent.span_id] if span.parent else None for span in self.named(name)}


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.exporter.shutdown()


async def test_a_search_is_a_tree_of_spans(spans: Spans) -> None:
    engine = spans.engine(CallingModel(spans.tracing))
    await answer(engine, ASK)
    counts = {name: len(spans.named(name)) for name in ("request", "chunk", "propose", "score")}
    assert counts == {"request": 1, "chunk": 2, "propose": 2, "score": 2}
    assert spans.parents("request") == {None}
    assert spans.parents("chunk") == {"request"}
    assert spans.parents("propose") == spans.parents("score") == {"chunk"}
    assert spans.parents("remote call") == {"propose"}
    assert len({span.context.trace_id for span in spans.exporter.get_finished_spans() if span.context}) == 1
    [request] = spans.named("request")
    assert request.attributes is not None
    assert request.attributes["w2s.served_model"] == "guided"
    assert request.attributes["w2s.outcome"] == "length"
    assert request.attributes["w2s.chunks"] == 2
    everything = "".join(span.to_json() for span in spans.exporter.get_finished_spans())
    assert "secret" not in everything


async def test_a_plain_request_proposes_once_for_each_choice(spans: Spans) -> None:
    await answer(spans.engine(CallingModel(spans.tracing)), replace(ASK, model="plain", n=2))
    assert len(spans.named("propose")) == 2
    assert spans.parents("propose") == {"request"}
    assert spans.parents("remote call") == {"propose"}


async def test_a_remote_call_took_as_long_as_it_took(spans: Spans) -> None:
    await answer(spans.engine(CallingModel(spans.tracing)), ASK)
    call = spans.named("remote call")[0]
    assert call.start_time is not None
    assert call.end_time is not None
    assert call.end_time - call.start_time == 250_000_000
    assert dict(call.attributes or {}) == {"w2s.provider": "far", "w2s.status": "200", "w2s.attempt": 1}


async def test_a_call_of_nobodys_request_is_no_trace(spans: Spans) -> None:
    spans.tracing.remote_attempt(Attempt("far", "200", 0.1, 1))
    assert not spans.exporter.get_finished_spans()


async def test_spans_of_requests_that_run_together_stay_apart(spans: Spans) -> None:
    engine = spans.engine(CallingModel(spans.tracing))
    await asyncio.gather(*(answer(engine, replace(ASK, model=m)) for m in ("guided", "plain") * 4))
    found = [span for span in spans.exporter.get_finished_spans() if span.context]
    trace_of = {span.context.span_id: span.context.trace_id for span in found}
    assert len(spans.named("request")) == len(set(trace_of.values())) == 8
    assert all(trace_of[span.parent.span_id] == span.context.trace_id for span in found if span.parent)


async def test_the_callers_trace_goes_on(spans: Spans) -> None:
    record = RequestRecord(caller={"traceparent": CALLER})
    async with aclosing(spans.engine().generate(ASK, record)) as events:
        async for _ in events:
            pass
    [request] = spans.named("request")
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CALLER.split("-")[2]
    assert record.trace_id == CALLER.split("-")[1]


async def test_nonsense_for_a_trace_begins_a_new_one(spans: Spans) -> None:
    record = RequestRecord(caller={"traceparent": "00-zz\n-1"})
    async with aclosing(spans.engine().generate(ASK, record)) as events:
        async for _ in events:
            pass
    assert spans.parents("request") == {None}


@pytest.mark.parametrize("model", ["guided", "plain"])
async def test_a_search_that_ends_early_ends_its_spans_once(
    spans: Spans, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    large = FakeLargeModel(gate=asyncio.Event().wait)
    with pytest.raises(DeadlineError):
        await answer(spans.engine(large, Limits(request_timeout_s=0.01)), replace(ASK, model=model))
    names = {span.name for span in spans.exporter.get_finished_spans()}
    assert names == ({"request", "chunk", "propose"} if model == "guided" else {"request", "propose"})
    [request] = spans.named("request")
    assert (request.status.is_ok, request.status.description) == (False, "timeout")
    assert not caplog.records


async def test_who_leaves_early_leaves_nothing_behind(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    async with aclosing(spans.engine().generate(replace(ASK, sampling=SamplingParams(max_tokens=900)))) as events:
        async for _ in events:
            break
    [request] = spans.named("request")
    assert request.attributes is not None
    assert request.attributes["w2s.outcome"] == "cancelled"
    assert request.status.is_ok, "a client that leaves is not an error"
    assert not caplog.records, "a context that was left in another one than it was entered in"


async def test_answers_are_the_same_in_spans(spans: Spans) -> None:
    plain = Engine(
        {"large": FakeLargeModel()},
        {"positive": FakeScorer()},
        {"guided": ServedModelConfig("large", DEFAULT_GUIDANCE)},
    )
    ask = replace(ASK, sampling=SamplingParams(max_tokens=40, seed=5))
    assert await answer(plain, ask) == await answer(spans.engine(FakeLargeModel()), ask)


async def test_stopping_sends_what_is_left(spans: Spans) -> None:
    sent: list[bool] = []
    spans.exporter.shutdown = lambda: sent.append(True)  # type: ignore[method-assign]
    async with spans.engine():
        assert not sent
    assert sent == [True]


def test_off_it_is_not_even_imported() -> None:
    code = "import sys, w2s_core.build.engine, server.serve; sys.exit('opentelemetry.sdk' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2s_core.build.engine import build_engine
    from w2s_core.config import EngineConfig
    from w2s_core.errors import ConfigurationError

    monkeypatch.setitem(sys.modules, "w2s_core.telemetry.tracing", None)
    with pytest.raises(ConfigurationError, match=r"w2s-server\[otel\]"):
        build_engine(EngineConfig({}, {}, traces=True))
