"""Requests become searches become events. Knows neither tensors nor HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

from w2s_core.admission import Admission, Ticket
from w2s_core.concurrency import merged
from w2s_core.config import Limits
from w2s_core.eager import EagerProposals, ProposesByFamily
from w2s_core.errors import ContextLengthError, DeadlineError, OutgrownError, RequestError, UnavailableError
from w2s_core.interfaces import LargeModel, Proposals, Scorer
from w2s_core.metrics import Metrics
from w2s_core.noise import copy_key, root_key, successor_key
from w2s_core.observation import CountedScorer, Observation
from w2s_core.planning import Plan, Planner, ServedModel
from w2s_core.record import RequestRecord
from w2s_core.search import search
from w2s_core.text import Tokenizer
from w2s_core.tools.formats import ToolFormat
from w2s_core.trace import Trace
from w2s_core.types import (
    Bought,
    ChoiceFinished,
    Event,
    GenerationRequest,
    Guidance,
    GuidanceReport,
    Hypothesis,
    PromptRead,
    RequestFinished,
    TextCommitted,
    TextPrompt,
)
from w2s_core.writing import ChoiceWriter, TokenWriter, placed_prompt

if TYPE_CHECKING:
    from w2s_core.tracing import Tracing

_RETRY_AFTER_S = 5
_PromptEvent: TypeAlias = PromptRead | TextCommitted | ChoiceFinished


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
        counted = {name: CountedScorer(name, scorer, self.metrics) for name, scorer in scorers.items()}
        self._planner = Planner(
            large_models, counted, served, limits.max_rows_per_request, limits.max_sampled_tokens_per_request
        )
        self._devices = devices
        self._providers = providers
        self._running = AsyncExitStack()
        self._timeout_s = limits.request_timeout_s
        self.admission = Admission(limits.max_rows, limits.max_queued_rows)
        self._tracing = tracing
        self.metrics.watch(self.admission)

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
        return self._planner.large_model(model).tool_format

    async def generate(self, request: GenerationRequest, record: RequestRecord | None = None) -> AsyncGenerator[Event]:
        """Committed text, finished choices, and at last RequestFinished. Closing the iterator stops the search.
        What is known of the request when it is over stands in `record`.

        Raises RequestError, OverloadedError and UnavailableError before the first event; DeadlineError and
        WorkerError at any time.
        """
        with Observation(self.metrics, request, self._planner.labels(request), record, self._tracing) as seen:
            async with aclosing(self._events(request, seen)) as events:
                async for event in events:
                    seen.event(event)
                    yield event

    async def _events(self, request: GenerationRequest, seen: Observation) -> AsyncGenerator[Event]:
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
            events = await stack.enter_async_context(aclosing(merged(sources, timeout_s=self._timeout_s)))
            try:
                async for event in events:
                    yield _with_usage(event, runs)
            except TimeoutError:
                raise DeadlineError(f"The request did not finish within {self._timeout_s:g} seconds.") from None
        yield _finished(runs)


class PromptRun:
    """One prompt's way through the models, and what it cost."""

    def __init__(self, plan: Plan, first_choice: int, seen: Observation) -> None:
        self.plan = plan
        self.lengths = [0] * plan.n  # tokens of each choice so far
        self.prompt_tokens = plan.large.count(plan.prompt)
        self.sampled_tokens = 0
        self.scored_tokens = 0
        self.bought = Bought()
        self.trace = Trace(keep_tree=plan.guidance is not None and plan.guidance.trace)
        self._first_choice = first_choice
        self._seen = seen
        self._root = Hypothesis(key=root_key(plan.seed))

    async def events(self, ticket: Ticket) -> AsyncGenerator[_PromptEvent]:
        """Everything but the request's last event."""
        plan = self.plan
        async with ticket:
            if plan.with_prompt:
                yield await self._read_prompt()
            async with aclosing(self._answers()) as answers:
                async for event in answers:
                    yield event

    async def _answers(self) -> AsyncGenerator[TextCommitted | ChoiceFinished]:
        plan = self.plan
        if plan.scored is not None and plan.scorer is not None:
            for event in await self._scored(plan.scored, plan.scorer):
                yield event
            return
        async with plan.large.open(plan.prompt, plan.sampling, rows=plan.rows) as proposals:
            self._seen.draws(proposals)
            source = self._plain(proposals) if plan.scorer is None else self._guided(proposals, plan.scorer)
            async with aclosing(source):
                async for event in source:
                    self.prompt_tokens = proposals.prompt_tokens
                    yield event
            self.sampled_tokens = proposals.sampled_tokens
            self.bought += proposals.bought

    async def _plain(self, proposals: Proposals) -> AsyncGenerator[TextCommitted | ChoiceFinished]:
        keys = [successor_key(self._root.key, 0, i) for i in range(self.plan.n)]
        samples = [self._sample(proposals, i, replace(self._root, key=key)) for i, key in enumerate(keys)]
        async with aclosing(merged(samples)) as events:
            async for event in events:
                yield event

    async def _sample(
        self, proposals: Proposals, choice: int, start: Hypothesis
    ) -> AsyncGenerator[TextCommitted | ChoiceFinished]:
        writer = self._writer(choice)
        last = start
        if self.plan.budget > 0:
            grown = self._seen.grows(proposals.grow(start, length=self.plan.budget))
            async with aclosing(grown) as growing:
                async for last in growing:
                    self.lengths[choice] = last.length
                    for text in writer.commit([last]):
                        yield text
        for event in self._finish(writer, last):
            yield event

    async def _guided(self, proposals: Proposals, scorer: Scorer) -> AsyncGenerator[TextCommitted | ChoiceFinished]:
        plan, guidance = self.plan, self.plan.guidance
        assert guidance is not None  # a scorer is planned for guided requests only
        writers = [self._writer(i) for i in range(plan.n)]
        beam: Sequence[Hypothesis] = [replace(self._root, key=copy_key(self._root.key, i)) for i in range(plan.copies)]
        async with scorer.open(plan.pair_prompt) as opened:
            scoring = self._seen.scores(opened)
            rounds = search(
                self._seen.proposes(
                    EagerProposals(proposals, scoring) if isinstance(proposals, ProposesByFamily) else proposals
                ),
                scoring,
                beam,
                w=plan.keep,
                k=guidance.successors,
                length=guidance.chunk_length,
                budget=plan.budget,
            )
            counted = self._seen.rounds(rounds, beam, k=guidance.successors, ranked=plan.ranked)
            async with aclosing(counted):
                async for chunk in counted:
                    beam = chunk.beam
                    self.trace.add(chunk)
                    self.lengths = [min(y.length for y in beam)] * plan.n  # what is agreed on is not longer
                    for text in [text for writer in writers for text in writer.commit(beam)]:
                        yield text
            self.scored_tokens = scoring.scored_tokens
            self.bought += scoring.bought
        for writer, answer in zip(writers, _padded(beam, plan.n), strict=True):
            for event in self._finish(writer, answer):
                yield event

    async def _scored(self, text: str, scorer: Scorer) -> list[TextCommitted | ChoiceFinished]:
        """Each choice the same: nothing new, and what the pairs think of the text."""
        async with scorer.open(self.plan.pair_prompt) as scoring:
            try:
                [score] = await scoring.score([replace(self._root, text=text, finish_reason="length")])
            except OutgrownError as error:
                raise ContextLengthError(error.limit, error.prompt_tokens, error.answer_tokens, "prompt") from None
            self.scored_tokens = scoring.scored_tokens
            self.bought += scoring.bought
        answer = replace(self._root, score=score.total, scores=score.pairs)
        return [event for i in range(self.plan.n) for event in self._finish(self._writer(i), answer)]

    def _finish(self, writer: ChoiceWriter, answer: Hypothesis) -> list[TextCommitted | ChoiceFinished]:
        answer = replace(answer, finish_reason=answer.finish_reason or "length")
        self.lengths[writer.index - self._first_choice] = answer.length
        return writer.finish(answer, guided=self.plan.ranked)

    def _writer(self, choice: int) -> ChoiceWriter:
        index, plan = self._first_choice + choice, self.plan
        if plan.with_tokens:
            return TokenWriter(index, plan.sampling, plan.large.codec)
        return ChoiceWriter(index, plan.sampling.stop)

    async def _read_prompt(self) -> PromptRead:
        large, prompt, top = self.plan.large, self.plan.prompt, self.plan.prompt_logprobs
        found = None if top is None else await large.prompt_logprobs(prompt, top=top)
        shown = self.plan.pair_prompt
        text = shown.text + (self.plan.scored or "") if isinstance(shown, TextPrompt) else ""
        choices = range(self._first_choice, self._first_choice + self.plan.n)
        return PromptRead(choices, text, placed_prompt(large.codec, prompt, found) if large.token_ids else ())


def _padded(beam: Sequence[Hypothesis], n: int) -> list[Hypothesis]:
    """n answers, best first. Merging can leave fewer than were asked for; the last one then stands for the rest."""
    return [*beam[:n], *[beam[-1]] * (n - len(beam))]


def _prompt_tokens(runs: Sequence[PromptRun]) -> int:
    return sum(run.prompt_tokens for run in runs)


def _completion_tokens(runs: Sequence[PromptRun]) -> int:
    return sum(sum(run.lengths) for run in runs)


def _with_usage(event: _PromptEvent, runs: Sequence[PromptRun]) -> _PromptEvent:
    if not isinstance(event, TextCommitted):
        return event
    return replace(event, prompt_tokens=_prompt_tokens(runs), completion_tokens=_completion_tokens(runs))


def _finished(runs: Sequence[PromptRun]) -> RequestFinished:
    guidance = runs[0].plan.guidance
    bought = sum((run.bought for run in runs), Bought())
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
            upstream=bought if bought.calls else None,
            tree=[run.trace.tree for run in runs] if guidance.trace else None,
        ),
    )
