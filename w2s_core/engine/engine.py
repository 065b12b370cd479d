"""The inference engine: takes generation requests, runs them and yields events. Knows neither torch nor HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

from w2s_core.aio import merge
from w2s_core.config import Limits, ServedModelConfig
from w2s_core.engine.admission import AdmissionQueue
from w2s_core.engine.events import Event, GuidanceReport, RequestFinished, TextCommitted
from w2s_core.engine.observer import MeteredScorer, RequestObserver
from w2s_core.engine.planning import Plan, Planner, ServedModel
from w2s_core.engine.prompt_run import PromptEvent, PromptRun
from w2s_core.engine.reasoning_run import ReasoningRun
from w2s_core.errors import DeadlineError, RequestError, UnavailableError
from w2s_core.interfaces import LargeModel, ProxyTuner, Scorer, Tokenizer
from w2s_core.structured.tool_formats import TOOL_FORMATS, ToolFormat
from w2s_core.telemetry.metrics import Metrics
from w2s_core.telemetry.request_record import RequestRecord
from w2s_core.types import GenerationRequest, Guidance, ProviderUsage

if TYPE_CHECKING:
    from w2s_core.telemetry.tracing import Tracing

Run: TypeAlias = PromptRun | ReasoningRun
_RETRY_AFTER_S = 5


class Component(Protocol):
    """A part of the engine that starts and stops with it: the worker pool, a capability probe, a grammar checker."""

    @property
    def ready(self) -> bool:
        """Whether requests can be served as far as this component is concerned."""
        ...

    async def start(self) -> None:
        """Raises W2SError if it cannot start; the engine then stops those that did."""
        ...

    async def stop(self) -> None: ...


class Engine:
    """Serves generation requests. `async with` starts and stops its components.

    `served` are the served models by API name. `tuners` and `scorer_keys`: see `Planner`. `worker_pool` runs
    the local models, None if there are none; `components` are the others that are started and stopped with the engine.

        async with build_engine(config) as engine:
            async for event in engine.generate(GenerationRequest("smollm2", (TextPrompt("Hello"),))):
                if isinstance(event, TextCommitted):
                    print(event.text, end="")
    """

    def __init__(
        self,
        large_models: Mapping[str, LargeModel],
        scorers: Mapping[str, Scorer],
        served: Mapping[str, ServedModelConfig],
        *,
        tuners: Mapping[str, ProxyTuner] | None = None,
        scorer_keys: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        worker_pool: Component | None = None,
        components: Sequence[Component] = (),
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        limits = limits or Limits()
        self.metrics = metrics or Metrics()
        metered = {name: MeteredScorer(name, scorer, self.metrics) for name, scorer in scorers.items()}
        self._planner = Planner(
            large_models,
            metered,
            served,
            limits.max_rows_per_request,
            limits.max_sampled_tokens_per_request,
            tuners or {},
            scorer_keys or {},
        )
        self._worker_pool = worker_pool
        self._components = components
        self._started: list[Component] = []
        self._timeout_s = limits.request_timeout_s
        self.admission = AdmissionQueue(limits.max_rows, limits.max_queued_rows)
        self._tracing = tracing
        self.metrics.watch_admission(self.admission)

    async def __aenter__(self) -> Self:
        try:
            for component in filter(None, [self._worker_pool, *self._components, self._tracing]):
                await component.start()
                self._started.append(component)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        """Stops the components that have started, all at the same time: each may take its whole grace period."""
        stopping = await asyncio.gather(*(part.stop() for part in self._started), return_exceptions=True)
        self._started.clear()
        for error in filter(None, stopping):
            raise error

    @property
    def ready(self) -> bool:
        """Whether each worker spec's models are loaded on a living worker and every provider is known and reachable."""
        return self._workers_ready and all(component.ready for component in self._components)

    @property
    def _workers_ready(self) -> bool:
        return self._worker_pool is None or self._worker_pool.ready

    def drain(self) -> None:
        """Starts a graceful shutdown: new and waiting requests get ShuttingDownError, running ones continue.

        A request runs as soon as one of its prompts has been admitted.
        """
        self.admission.close()

    def reconfigure(self, served: Mapping[str, ServedModelConfig], limits: Limits) -> None:
        """Replaces the served models, over the same large models and pairs, and the limits except `max_rows`.

        Running and waiting requests keep the values they were planned with.
        """
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
        """The served models by API name, in the order of the configuration.

        Their context lengths are available once the engine has started.
        """
        return self._planner.served_models

    @property
    def scorer_keys(self) -> Mapping[str, str]:
        """The key of `Guidance` under which a request may name each scorer, by the scorer's name."""
        return {name: self._planner.scorer_keys.get(name, "pairs") for name in self._planner.scorers}

    def tokenizer(self, model: str) -> Tokenizer:
        """The tokenizer of a served model's large model. Raises RequestError if only its provider has one."""
        tokenizer = self._planner.large_model(model).tokenizer
        if tokenizer is None:
            raise RequestError(f"The tokenizer of `{model}` is not available: only its provider has it.", "model")
        return tokenizer

    def tool_format(self, model: str) -> ToolFormat | None:
        """The tool call format of a served model's large model, None if unknown. Raises UnknownModelError."""
        name = self._planner.large_model(model).tool_format
        return None if name is None else TOOL_FORMATS[name]

    async def generate(self, request: GenerationRequest, record: RequestRecord | None = None) -> AsyncGenerator[Event]:
        """Runs a request and yields its events (see `engine.events`), the last of which is RequestFinished.

        Closing the iterator stops the search and frees its rows and KV. `record` is filled in when the request is over.

        Raises OverloadedError only before the first event; RequestError (a search outgrew KV or the pair's context, or
        a grammar failed), UnavailableError, DeadlineError, UpstreamError and WorkerError at any time.
        """
        labels = self._planner.labels(request)
        with RequestObserver(self.metrics, request, labels, record, self._tracing) as observer:
            async with aclosing(self._events(request, observer)) as events:
                async for event in events:
                    observer.on_event(event)
                    yield event

    async def _events(self, request: GenerationRequest, observer: RequestObserver) -> AsyncGenerator[Event]:
        # A provider that is down fails only the requests that need it, when they are planned.
        if not self._workers_ready:
            raise UnavailableError("No worker is ready.", _RETRY_AFTER_S)
        plans = self._planner.plan(await self._planner.with_checked_grammar(request))
        self._check_fits_idle_queue(plans)
        observer.on_planned(plans)
        runs = [_run(plan, i * request.n, observer) for i, plan in enumerate(plans)]
        async with AsyncExitStack() as stack:
            sources = []
            for run in runs:
                ticket = self.admission.reserve(run.plan.rows, request, observer.on_admitted)
                stack.callback(ticket.cancel)
                sources.append(run.events(ticket))
            events = await stack.enter_async_context(aclosing(merge(sources, timeout_s=self._timeout_s)))
            try:
                async for event in events:
                    yield _with_usage(event, runs)
            except TimeoutError:
                raise DeadlineError(f"The request did not finish within {self._timeout_s:g} seconds.") from None
        yield _finished(runs)

    def _check_fits_idle_queue(self, plans: Sequence[Plan]) -> None:
        """Refuses prompts that the queue could never take together: trying again later would not help."""
        rows = max(plan.rows for plan in plans)
        if len(plans) > (limit := self.admission.capacity(rows)):
            raise RequestError(
                f"This request has {len(plans)} prompts, each of which samples {rows} sequences at once; at most "
                f"{limit} such prompts are allowed.",
                "prompt",
            )


def _run(plan: Plan, first_choice: int, observer: RequestObserver) -> Run:
    return (PromptRun if plan.thoughts is None else ReasoningRun)(plan, first_choice, observer)


def _with_usage(event: PromptEvent, runs: Sequence[Run]) -> PromptEvent:
    if not isinstance(event, TextCommitted):
        return event
    prompt_tokens = sum(run.prompt_tokens for run in runs)
    completion_tokens = sum(run.completion_tokens for run in runs)
    return replace(event, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def _finished(runs: Sequence[Run]) -> RequestFinished:
    guidance = runs[0].plan.guidance
    reasoning_tokens = [run.reasoning_tokens for run in runs if run.reasoning_tokens is not None]
    return RequestFinished(
        prompt_tokens=sum(run.prompt_tokens for run in runs),
        completion_tokens=sum(run.completion_tokens for run in runs),
        cached_tokens=sum(run.cached_tokens for run in runs),
        reasoning_tokens=sum(reasoning_tokens) if reasoning_tokens else None,
        guidance=None if guidance is None else _guidance_report(guidance, runs),
    )


def _guidance_report(guidance: Guidance, runs: Sequence[Run]) -> GuidanceReport:
    provider_usage = sum((run.provider_usage for run in runs), ProviderUsage())
    return GuidanceReport(
        method=guidance.method,
        beam_width=guidance.beam_width,
        successors=guidance.successors,
        chunk_length=guidance.chunk_length,
        chunks=sum(run.tree.chunks for run in runs),
        sampled_tokens=sum(run.sampled_tokens for run in runs),
        scored_tokens=sum(run.scored_tokens for run in runs),
        upstream=provider_usage if provider_usage.calls else None,
        tree=[run.tree.tree for run in runs] if guidance.trace is True else None,
        tree_truncated=guidance.trace is True and any(run.tree.truncated for run in runs),
    )
