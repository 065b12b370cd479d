"""A fake engine that plays a script of events, for tests of the HTTP side without a model.

It keeps the requests that it gets. `closed` is set when a generation has ended or was cancelled, `idle` while none is
running.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from w2s_core.engine.events import ChoiceFinished, Event, GuidanceReport, RequestFinished, TextCommitted
from w2s_core.telemetry.metrics import Metrics
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, SamplingParams


@dataclass(frozen=True)
class FakeServedModel:
    name: str
    context_length: int = 128
    guidance: Guidance | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)


STEERED = Guidance(pairs={"positive": 1.0}, beam_width=4, successors=4, chunk_length=5)
BEST_OF = Guidance(method="best_of_n", pairs={"positive": 1.0}, successors=8)
MODELS = {
    model.name: model
    for model in (
        FakeServedModel("plain"),
        FakeServedModel("steered", guidance=STEERED),
        FakeServedModel("best", guidance=BEST_OF),
        FakeServedModel("org/with/slashes"),
    )
}


@dataclass(frozen=True)
class Block:
    """In a script: sets `FakeEngine.blocked` and waits here until cancelled."""


Script = Sequence["Event | Exception | Block"]


def hypothesis(text: str, *, guided: bool = False) -> Hypothesis:
    scores = MappingProxyType({"positive": 1.5}) if guided else {}
    return Hypothesis(
        tokens=tuple(range(len(text))), text=text, finish_reason="stop", score=3.0 if guided else 0.0, scores=scores
    )


REPORT = GuidanceReport(
    method="cbs", beam_width=4, successors=4, chunk_length=5, chunks=2, sampled_tokens=80, scored_tokens=60
)


def answering(request: GenerationRequest) -> list[Event]:
    """Two pieces of text for each choice, interleaved; guided when the request says so."""
    guided = (request.guidance is not None and request.guidance.method != "none") or request.model == "steered"
    count = request.n * len(request.prompts)
    events: list[Event] = []
    for step, piece in enumerate(("Hello", " wörld\n"), start=1):
        for index in range(count):
            events.append(TextCommitted(index, piece, prompt_tokens=3, completion_tokens=step))
    events += [ChoiceFinished(index, hypothesis("Hello wörld\n", guided=guided), guided) for index in range(count)]
    return [*events, RequestFinished(3 * len(request.prompts), 2 * count, REPORT if guided else None)]


@dataclass
class FakeEngine:
    """`script`: what every request yields; by default `answering(request)`."""

    script: Script | Callable[[GenerationRequest], Script] = answering
    ready: bool = True
    served_models: dict[str, FakeServedModel] = field(default_factory=lambda: dict(MODELS))
    requests: list[GenerationRequest] = field(default_factory=list)
    entered: bool = False
    exited: bool = False
    drained: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    scorer_keys: dict[str, str] = field(default_factory=lambda: {"positive": "pairs"})
    open: int = 0

    def __post_init__(self) -> None:
        self.blocked = asyncio.Event()
        self.closed = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    async def __aenter__(self) -> FakeEngine:
        self.entered = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.exited = True

    def drain(self) -> None:
        self.drained = True

    async def generate(self, request: GenerationRequest, record: RequestRecord | None = None) -> AsyncIterator[Event]:
        self.requests.append(request)
        self.open += 1
        self.idle.clear()
        try:
            for step in self.script(request) if callable(self.script) else self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Block):
                    self.blocked.set()
                    await asyncio.Event().wait()
                else:
                    yield step
        finally:
            await asyncio.sleep(0)  # an engine may await while it frees its rows; a second cancellation would show here
            self.open -= 1
            self.closed.set()
            if self.open == 0:
                self.idle.set()
