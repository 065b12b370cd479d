"""Runs one prompt's plan on a reasoning model: its thoughts first, then the answer behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from w2s_core.aio import merge
from w2s_core.engine.admission import Ticket
from w2s_core.engine.events import ChoiceFinished, RoundFinished, TextCommitted, TokenInfo
from w2s_core.engine.observer import RequestObserver
from w2s_core.engine.planning import Mode, Plan
from w2s_core.engine.prompt_run import ChoiceEvent, PromptEvent, PromptRun, SearchEvent, read_prompt
from w2s_core.engine.thought_sampler import ThoughtSampler, ThoughtSplitter
from w2s_core.engine.thoughts import searched_sampling
from w2s_core.search.randomness import answer_seed, root_key, successor_key
from w2s_core.search.tree import SearchTree
from w2s_core.text.detokenizer import AnswerDetokenizer
from w2s_core.types import Hypothesis, ProviderUsage, Tokens


class ReasoningRun:
    """Carries out one plan with thoughts. Its attributes and parameters are those of `PromptRun`.

    Each plain choice has thoughts of its own. A search begins behind one choice of thoughts, which all of its answers
    share, unless the request wants both searched together.
    """

    def __init__(self, plan: Plan, first_choice: int, observer: RequestObserver) -> None:
        self.plan = plan
        self.prompt_tokens = plan.large.count_tokens(plan.prompt)
        self._first_choice = first_choice
        self._observer = observer
        self._samplers: dict[int, ThoughtSampler] = {}  # by choice; all choices of a search have the same
        self._answers: list[PromptRun] = []
        self._searched_thoughts = [0] * plan.n  # tokens of each choice, where they are searched

    async def events(self, ticket: Ticket) -> AsyncGenerator[PromptEvent]:
        """Waits for admission, then yields every event of this prompt's choices."""
        async with ticket:
            if self.plan.with_prompt:
                yield await read_prompt(self.plan, self._first_choice)
            async with aclosing(self._choice_events()) as events:
                async for event in events:
                    yield event

    def _choice_events(self) -> AsyncGenerator[SearchEvent]:
        plan = self.plan
        assert plan.thoughts is not None
        choices = range(plan.n)
        if plan.thoughts.searched:
            return self._search_both()
        if plan.mode is Mode.SEARCH:
            return self._think_and_answer(Hypothesis(key=root_key(plan.seed)), choices)
        roots = [Hypothesis(key=successor_key(root_key(plan.seed), 0, i)) for i in choices]
        return merge([self._think_and_answer(root, [i]) for i, root in zip(choices, roots, strict=True)])

    async def _think_and_answer(self, root: Hypothesis, choices: Sequence[int]) -> AsyncGenerator[SearchEvent]:
        indices = [self._first_choice + i for i in choices]
        sampler = ThoughtSampler(self.plan, root, indices[0], self._observer)
        self._samplers |= dict.fromkeys(choices, sampler)
        async with aclosing(sampler.events()) as thoughts:
            async for thought in thoughts:
                for index in indices:
                    yield replace(thought, index=index)
        pending = tuple(sampler.splitter.pending)
        if sampler.ended:
            answer = replace(sampler.ended, tokens=(), text="")
            for index in indices:
                yield ChoiceFinished(index, answer, guided=False, tokens=pending, thoughts=sampler.splitter.thoughts)
            return
        run = PromptRun(self._answer_plan(sampler, len(choices)), indices[0], self._observer, first_draw=choices[0])
        self._answers.append(run)
        openings = {index: _AnswerOpening(pending, strips=self._strips_blanks(sampler)) for index in indices}
        async with aclosing(run.choice_events()) as events:
            async for event in events:
                if isinstance(event, RoundFinished):
                    yield replace(event, sampled_tokens=sampler.sampled_tokens + event.sampled_tokens)
                    continue
                opened = openings[event.index].open(event)
                if isinstance(opened, ChoiceFinished):
                    opened = replace(opened, thoughts=sampler.splitter.thoughts)
                if opened is not None:
                    yield opened

    def _strips_blanks(self, sampler: ThoughtSampler) -> bool:
        """Whether blanks at the beginning of the answer are those between it and its thoughts, not a grammar's."""
        return bool(sampler.tokens) and self.plan.sampling.grammar is None

    def _answer_plan(self, sampler: ThoughtSampler, n: int) -> Plan:
        """The plan for the answer behind these thoughts."""
        plan = self.plan
        assert plan.thoughts is not None
        prompt = plan.large.extend_prompt(plan.prompt, sampler.tokens, sampler.overhang)
        added = plan.large.count_tokens(prompt) - plan.large.count_tokens(plan.prompt)
        used = max(len(sampler.tokens), added)  # tokens of an overhang were not drawn, but take room
        budget = min(plan.budget - used, plan.thoughts.answer_budget)
        min_tokens = min(max(0, plan.sampling.min_tokens - used), budget)
        return replace(
            plan,
            prompt=prompt,
            seed=answer_seed(plan.seed) if sampler.tokens else plan.seed,
            sampling=replace(plan.sampling, max_tokens=budget, min_tokens=min_tokens),
            budget=budget,
            n=n,
        )

    async def _search_both(self) -> AsyncGenerator[SearchEvent]:
        plan = self.plan
        assert plan.thoughts is not None
        sampling = searched_sampling(plan.sampling, plan.large, plan.thoughts)
        run = PromptRun(replace(plan, sampling=sampling), self._first_choice, self._observer)
        self._answers.append(run)
        splitters = [ThoughtSplitter(plan.thoughts) for _ in range(plan.n)]
        async with aclosing(run.choice_events()) as events:
            async for event in events:
                if isinstance(event, RoundFinished):
                    yield event
                    continue
                choice = event.index - self._first_choice
                splitter = splitters[choice]
                if isinstance(event, TextCommitted):
                    for part in splitter.split(event):
                        yield part
                    continue
                for part in splitter.finish(event.index):
                    yield part
                self._searched_thoughts[choice] = self._count_thoughts(event.hypothesis, splitter)
                answer = replace(event.hypothesis, text=splitter.answer)
                tokens = (*splitter.pending, *event.tokens)
                yield replace(event, hypothesis=answer, tokens=tokens, thoughts=splitter.thoughts)

    def _count_thoughts(self, y: Hypothesis, splitter: ThoughtSplitter) -> int:
        """The tokens of a searched answer before its answer proper."""
        start = splitter.answer_start
        if start is None:
            return y.length if splitter.has_begun else 0
        prompt: Tokens = self.plan.prompt if self.plan.large.exposes_token_ids else ()
        return len(AnswerDetokenizer(self.plan.large.decoder.verbatim, prompt).covering(y.tokens, start))

    @property
    def completion_tokens(self) -> int:
        """The tokens of all choices so far, thoughts included."""
        thoughts = sum(sampler.length for sampler in self._samplers.values())
        return thoughts + sum(run.completion_tokens for run in self._answers)

    @property
    def reasoning_tokens(self) -> int:
        """The tokens of all choices' thoughts so far, with their markers and the blanks around them."""
        return sum(sampler.length for sampler in self._samplers.values()) + sum(self._searched_thoughts)

    @property
    def _sessions(self) -> list[ThoughtSampler | PromptRun]:
        """The samplers, each once, and then the runs of the answers."""
        return [*{id(sampler): sampler for sampler in self._samplers.values()}.values(), *self._answers]

    @property
    def sampled_tokens(self) -> int:
        """The tokens that the large model has drawn for finished thoughts and answers, pruned ones included."""
        return sum(session.sampled_tokens for session in self._sessions)

    @property
    def scored_tokens(self) -> int:
        """The pairs' tokens."""
        return sum(run.scored_tokens for run in self._answers)

    @property
    def cached_tokens(self) -> int:
        """The prompt's tokens whose KV was cached, as the first session found it: a later one finds what that left."""
        return next((session.cached_tokens for session in self._sessions if session.sampled_tokens), 0)

    @property
    def provider_usage(self) -> ProviderUsage:
        """What providers have delivered."""
        return sum((session.provider_usage for session in self._sessions), ProviderUsage())

    @property
    def tree(self) -> SearchTree:
        """The tree of the search."""
        return self._answers[0].tree if self._answers else SearchTree(max_characters=0)


class _AnswerOpening:
    """The beginning of an answer behind thoughts: it carries their `pending` tokens and, if it `strips`, no blanks."""

    def __init__(self, pending: tuple[TokenInfo, ...], *, strips: bool) -> None:
        self._pending = pending
        self._strips = strips
        self._begun = False

    def open(self, event: ChoiceEvent) -> ChoiceEvent | None:
        """The event to send in place of this one; None if nothing of its text is left."""
        event = replace(event, tokens=self._pending + event.tokens)
        if isinstance(event, ChoiceFinished):
            text = event.hypothesis.text
            return replace(event, hypothesis=replace(event.hypothesis, text=text.lstrip() if self._strips else text))
        text = event.text.lstrip() if self._strips and not self._begun else event.text
        self._begun, self._pending = self._begun or bool(text), () if text else event.tokens
        return replace(event, text=text) if text else None
