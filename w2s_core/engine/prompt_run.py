"""Runs one prompt's plan: samples plain choices, runs the search, or scores a given text, and yields the events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

from w2s_core.aio import merge
from w2s_core.engine.admission import Ticket
from w2s_core.engine.early_scoring import AsCompletedProposals, EarlyScoringProposer
from w2s_core.engine.events import ChoiceFinished, PromptRead, RoundFinished, TextCommitted
from w2s_core.engine.observer import RequestObserver
from w2s_core.engine.output import ChoiceStreamer, TokenStreamer, prompt_token_infos
from w2s_core.engine.pair_context import AnswerCutter, search_within_pair_context
from w2s_core.engine.planning import Mode, Plan
from w2s_core.engine.round_events import RoundEvents
from w2s_core.errors import ContextLengthError, PairContextLengthError
from w2s_core.interfaces import Proposals, Proposer, Scoring
from w2s_core.search.cbs import distinct
from w2s_core.search.randomness import copy_key, root_key, successor_key
from w2s_core.search.selection import Selector
from w2s_core.search.tree import SearchTree
from w2s_core.types import Hypothesis, ProviderUsage, Round, TextPrompt, Tokens

ChoiceEvent: TypeAlias = TextCommitted | ChoiceFinished
SearchEvent: TypeAlias = RoundFinished | ChoiceEvent
PromptEvent: TypeAlias = PromptRead | SearchEvent


class PromptRun:
    """Carries out one plan. Its attributes hold what the run has cost so far.

    The choices of the prompt have the request-wide indices `first_choice` … `first_choice + n - 1`. Plain ones are
    draws number `first_draw` and following from the prompt.
    """

    reasoning_tokens: int | None = None

    def __init__(self, plan: Plan, first_choice: int, observer: RequestObserver, first_draw: int = 0) -> None:
        self.plan = plan
        self._choice_lengths = [0] * plan.n
        self.prompt_tokens = plan.large.count_tokens(plan.prompt)
        self.sampled_tokens = self.cached_tokens = 0
        self.scored_tokens = 0
        self.provider_usage = ProviderUsage()
        self.tree = SearchTree(max_characters=0 if plan.streams_rounds else plan.tree_characters)
        self._first_choice = first_choice
        self._first_draw = first_draw
        self._observer = observer
        self._root = Hypothesis(key=root_key(plan.seed))

    async def events(self, ticket: Ticket) -> AsyncGenerator[PromptEvent]:
        """Waits for admission, then yields every event of this prompt's choices."""
        async with ticket:
            if self.plan.with_prompt:
                yield await read_prompt(self.plan, self._first_choice)
            async with aclosing(self.choice_events()) as events:
                async for event in events:
                    yield event

    @property
    def completion_tokens(self) -> int:
        """The tokens of all choices so far."""
        return sum(self._choice_lengths)

    async def choice_events(self) -> AsyncGenerator[SearchEvent]:
        """Every event of the choices, and of their search, for a caller that has been admitted."""
        plan = self.plan
        if plan.mode is Mode.SCORE:
            for scored in await self._score_text():
                yield scored
            return
        async with plan.large.open(plan.prompt, plan.sampling, rows=plan.rows) as proposals:
            self._observer.count_proposals(proposals)
            source = self._sample_choices(proposals) if plan.mode is Mode.SAMPLE else self._search(proposals)
            async with aclosing(source):
                async for event in source:
                    self.prompt_tokens = proposals.prompt_tokens
                    yield event
            self.sampled_tokens, self.cached_tokens = proposals.sampled_tokens, proposals.cached_tokens
            self.provider_usage += proposals.provider_usage

    async def _sample_choices(self, proposals: Proposals) -> AsyncGenerator[ChoiceEvent]:
        keys = [successor_key(self._root.key, 0, self._first_draw + i) for i in range(self.plan.n)]
        samples = [self._sample_choice(proposals, i, replace(self._root, key=key)) for i, key in enumerate(keys)]
        async with aclosing(merge(samples)) as events:
            async for event in events:
                yield event

    async def _sample_choice(self, proposals: Proposals, choice: int, start: Hypothesis) -> AsyncGenerator[ChoiceEvent]:
        streamer = self._streamer(choice)
        hypothesis = start
        if self.plan.budget > 0:
            growing = self._observer.trace_sampling(proposals.grow(start, length=self.plan.budget))
            async with aclosing(growing):
                async for hypothesis in growing:
                    self._choice_lengths[choice] = hypothesis.length
                    for text in streamer.commit([hypothesis]):
                        yield text
        for event in self._finish(streamer, hypothesis):
            yield event

    async def _search(self, proposals: Proposals) -> AsyncGenerator[SearchEvent]:
        plan, scorer = self.plan, self.plan.scorer
        assert scorer is not None
        traced = RoundEvents(plan, self._first_choice, self._observer) if plan.streams_rounds else None
        streamers = [self._streamer(i) for i in range(plan.n)]
        beam: Sequence[Hypothesis] = [
            replace(self._root, key=copy_key(self._root.key, i)) for i in range(plan.initial_hypotheses)
        ]
        async with scorer.open(plan.pair_prompt) as session:
            scoring = self._observer.observe_scoring(session)
            async with aclosing(self._rounds(proposals, scoring, beam)) as rounds:
                async for round_ in rounds:
                    beam = round_.beam
                    self.tree.add(round_)
                    # The committed text is common to the whole beam, so it is no longer than the shortest hypothesis.
                    self._choice_lengths = [min(y.length for y in beam)] * plan.n
                    texts = [text for streamer in streamers for text in streamer.commit(beam)]
                    committed = streamers[0].sent_characters
                    if traced and (finished := traced.event(round_, committed, proposals, scoring)):
                        yield finished
                    for text in texts:
                        yield text
            self.scored_tokens = scoring.scored_tokens
            self.provider_usage += scoring.provider_usage
        for streamer, answer in zip(streamers, _best(beam, plan.n), strict=True):
            for event in self._finish(streamer, answer):
                yield event

    def _rounds(self, proposals: Proposals, scoring: Scoring, beam: Sequence[Hypothesis]) -> AsyncGenerator[Round]:
        """The rounds of the search that begins with `beam`."""
        plan, guidance = self.plan, self.plan.guidance
        assert guidance is not None
        rounds = search_within_pair_context(
            self._observer.trace_proposals(_proposer(proposals, scoring)),
            scoring,
            beam,
            AnswerCutter(plan.large.decoder, self._prompt_tokens, plan.sampling),
            w=plan.beam_width,
            k=guidance.successors,
            length=guidance.chunk_length,
            budget=plan.budget,
            selector=Selector(guidance, plan.budget, plan.n),
        )
        return self._observer.observe_rounds(rounds, pair_scored=plan.pair_scored)

    async def _score_text(self) -> list[ChoiceEvent]:
        """Every choice is the same empty answer, with the pairs' score of the given text."""
        scorer, text = self.plan.scorer, self.plan.text_to_score
        assert scorer is not None
        assert text is not None
        async with scorer.open(self.plan.pair_prompt) as scoring:
            try:
                [score] = await scoring.score([replace(self._root, text=text, finish_reason="length")])
            except PairContextLengthError as error:
                raise ContextLengthError(
                    error.limit, error.prompt_tokens, error.lengths[text, False], "prompt"
                ) from None
            self.scored_tokens = scoring.scored_tokens
            self.provider_usage += scoring.provider_usage
        answer = replace(self._root, score=score.total, scores=score.pairs)
        return [event for i in range(self.plan.n) for event in self._finish(self._streamer(i), answer)]

    def _finish(self, streamer: ChoiceStreamer, answer: Hypothesis) -> list[ChoiceEvent]:
        answer = replace(answer, finish_reason=answer.finish_reason or "length")
        self._choice_lengths[streamer.index - self._first_choice] = answer.length
        return streamer.finish(answer, guided=self.plan.pair_scored)

    @property
    def _prompt_tokens(self) -> Tokens:
        """The prompt for the large model's decoder, which cannot decode one that is no token ids."""
        return self.plan.prompt if self.plan.large.exposes_token_ids else ()

    def _streamer(self, choice: int) -> ChoiceStreamer:
        index, plan = self._first_choice + choice, self.plan
        if plan.with_tokens:
            return TokenStreamer(index, plan.sampling, plan.large.decoder, self._prompt_tokens)
        return ChoiceStreamer(index, plan.sampling.stop)


async def read_prompt(plan: Plan, first_choice: int) -> PromptRead:
    """The event that describes a plan's prompt, for its choices from index `first_choice` on."""
    large, prompt, top = plan.large, plan.prompt, plan.prompt_logprobs
    logprobs = None if top is None else await large.prompt_logprobs(prompt, top=top)
    source = plan.pair_prompt
    text = source.text + (plan.text_to_score or "") if isinstance(source, TextPrompt) else ""
    choices = range(first_choice, first_choice + plan.n)
    if not large.exposes_token_ids:
        return PromptRead(choices, text, ())
    verbatim = text == large.decoder.verbatim.decode(prompt)  # the text shows special tokens
    return PromptRead(choices, text, prompt_token_infos(large.decoder, prompt, logprobs, verbatim=verbatim))


def _proposer(proposals: Proposals, scoring: Scoring) -> Proposer:
    return EarlyScoringProposer(proposals, scoring) if isinstance(proposals, AsCompletedProposals) else proposals


def _best(beam: Sequence[Hypothesis], n: int) -> list[Hypothesis]:
    """The n best answers, best first. If merging has left fewer than n, the last one is repeated."""
    beam = distinct(beam, last_round=True)  # a search that ended before its time has not merged them
    return [*beam[:n], *[beam[-1]] * (n - len(beam))]
