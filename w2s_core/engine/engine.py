"""Requests become searches become events. Knows neither tensors nor HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from w2s_core.aio import merge
from w2s_core.config import Limits
from w2s_core.engine.admission import AdmissionQueue
from w2s_core.engine.events import Event, GuidanceReport, RequestFinished, TextCommitted
from w2s_core.engine.observer import MeteredScorer, RequestObserver
from w2s_core.engine.planning import Planner, ServedModel
from w2s_core.engine.prompt_run import PromptEvent, PromptRun
from w2s_core.errors import DeadlineError, RequestError, UnavailableError
from w2s_core.interfaces import LargeModel, Scorer, Tokenizer
from w2s_core.structured.tool_formats import FORMATS, ToolFormat
from w2s_core.telemetry.metrics import Metrics
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import GenerationRequest, Guidance, ProviderUsage

if TYPE_CHECKING:
    from w2s_core.telemetry.tracing import Tracing

_RETRY_AFTER_S = 5


class Devices(Protocol):
    """Where models run: started and stopped with the engine."""

    @property
    def ready(self) -> bool: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Engine:
    """Serves generation requests. `async with` starts and stops the devices.

    `served` maps an API name to the name of its large model and its default guidance.
    """

    def __init__(
        self,
        large_models: Mapping[str, LargeModel],
        scorers: Mapping[str, Scorer],
        served: Mapping[str, tuple[str, Guidance | None]],
        *,
        limits: Limits | None = None,
        devices: Devices | None = None,
        providers: Sequence[Devices] = (),
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        limits = limits or Limits()
        self.metrics = metrics or Metrics()
        counted = {name: MeteredScorer(name, scorer, self.metrics) for name, scorer in scorers.items()}
        self._planner = Planner(
            large_models, counted, served, limits.max_rows_per_request, limits.max_sampled_tokens_per_request
        )
        self._devices = devices
        self._providers = providers
        self._running = AsyncExitStack()
        self._timeout_s = limits.request_timeout_s
        self.admission = AdmissionQueue(limits.max_rows, limits.max_queued_rows)
        self._tracing = tracing
        self.metrics.watch_admission(self.admission)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as starting:  # what has started is stopped where something else cannot start
            for part in filter(None, [self._devices, *self._providers, self._tracing]):
                await part.start()
                starting.push_async_callback(part.stop)
            self._running = starting.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._running.aclose()

    @property
    def ready(self) -> bool:
        """Models are loaded and somebody can run them; every provider has been reached."""
        return self._devices_ready and all(provider.ready for provider in self._providers)

    @property
    def _devices_ready(self) -> bool:
        return self._devices is None or self._devices.ready

    def drain(self) -> None:
        """From now on refuses what comes and what waits, with ShuttingDownError; what runs goes on."""
        self.admission.close()

    def reconfigure(self, served: Mapping[str, tuple[str, Guidance | None]], limits: Limits) -> None:
        """Other names over the same models, and other limits, for whoever comes from now on; `max_rows` stays as it is.
        What was let in goes on as it began."""
        self._planner = replace(
            self._planner,
            served=served,
            max_rows_per_request=limits.max_rows_per_request,
            max_sampled_tokens=limits.max_sampled_tokens_per_request,
        )
        self._timeout_s = limits.request_timeout_s
        self.admission.max_queued_rows = limits.max_queued_rows

    @property
    def served_models(self) -> Mapping[str, ServedModel]:
        """By API name, in the order of the configuration. Context lengths are known once the engine has started."""
        return self._planner.served_models

    def tokenizer(self, model: str) -> Tokenizer:
        """Of the large model behind a served name. Raises RequestError."""
        tokenizer = self._planner.large_model(model).tokenizer
        if tokenizer is None:
            raise RequestError(f"Only the provider of `{model}` has its tokenizer.", "model")
        return tokenizer

    def tool_format(self, model: str) -> ToolFormat | None:
        """How the large model behind a served name writes calls of tools. Raises UnknownModelError."""
        name = self._planner.large_model(model).tool_format
        return None if name is None else FORMATS[name]

    async def generate(self, request: GenerationRequest, record: RequestRecord | None = None) -> AsyncGenerator[Event]:
        """Committed text, finished choices, and at last RequestFinished. Closing the iterator stops the search.
        What is known of the request when it is over stands in `record`.

        Raises RequestError, OverloadedError and UnavailableError before the first event; DeadlineError and
        WorkerError at any time.
        """
        with RequestObserver(self.metrics, request, self._planner.labels(request), record, self._tracing) as seen:
            async with aclosing(self._events(request, seen)) as events:
                async for event in events:
                    seen.event(event)
                    yield event

    async def _events(self, request: GenerationRequest, seen: RequestObserver) -> AsyncGenerator[Event]:
        if not self._devices_ready:  # a provider that is down concerns only those who ask for it: the plan tells
            raise UnavailableError("No worker is ready.", _RETRY_AFTER_S)
        plans = self._planner.plan(await self._planner.with_checked_grammar(request))
        seen.planned(plans)
        runs = [PromptRun(plan, first_choice=i * request.n, seen=seen) for i, plan in enumerate(plans)]
        async with AsyncExitStack() as stack:
            sources = []
            for run in runs:
                ticket = self.admission.reserve(run.plan.rows, request, seen.admitted)
                stack.callback(ticket.cancel)
                sources.append(run.events(ticket))
            events = await stack.enter_async_context(aclosing(merge(sources, timeout_s=self._timeout_s)))
            try:
                async for event in events:
                    yield _with_usage(event, runs)
            except TimeoutError:
                raise DeadlineError(f"The request did not finish within {self._timeout_s:g} seconds.") from None
        yield _finished(runs)


def _prompt_tokens(runs: Sequence[PromptRun]) -> int:
    return sum(run.prompt_tokens for run in runs)


def _completion_tokens(runs: Sequence[PromptRun]) -> int:
    return sum(sum(run.lengths) for run in runs)


def _with_usage(event: PromptEvent, runs: Sequence[PromptRun]) -> PromptEvent:
    if not isinstance(event, TextCommitted):
        return event
    return replace(event, prompt_tokens=_prompt_tokens(runs), completion_tokens=_completion_tokens(runs))


def _finished(runs: Sequence[PromptRun]) -> RequestFinished:
    guidance = runs[0].plan.guidance
    provider_usage = sum((run.provider_usage for run in runs), ProviderUsage())
    return RequestFinished(
        prompt_tokens=_prompt_tokens(runs),
        completion_tokens=_completion_tokens(runs),
        guidance=None
        if guidance is None
        else GuidanceReport(
            method=guidance.method,
            beam_width=guidance.beam_width,
            successors=guidance.successors,
            chunk_length=guidance.chunk_length,
            chunks=sum(run.trace.chunks for run in runs),
            sampled_tokens=sum(run.sampled_tokens for run in runs),
            scored_tokens=sum(run.scored_tokens for run in runs),
            upstream=provider_usage if provider_usage.calls else None,
            tree=[run.trace.tree for run in runs] if guidance.trace else None,
        ),
    )
