"""One prompt's way through the models: searched, sampled or only scored."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

from w2s_core.aio import merge
from w2s_core.engine.admission import Ticket
from w2s_core.engine.early_scoring import AsCompletedProposals, EarlyScoringProposer
from w2s_core.engine.events import ChoiceFinished, PromptRead, TextCommitted
from w2s_core.engine.observer import RequestObserver
from w2s_core.engine.output import ChoiceWriter, TokenWriter, placed_prompt
from w2s_core.engine.planning import Plan
from w2s_core.errors import ContextLengthError, OutgrownError
from w2s_core.interfaces import Proposals, Scorer
from w2s_core.search.cbs import search
from w2s_core.search.randomness import copy_key, root_key, successor_key
from w2s_core.search.tree import SearchTree
from w2s_core.types import Hypothesis, ProviderUsage, TextPrompt

PromptEvent: TypeAlias = PromptRead | TextCommitted | ChoiceFinished


class PromptRun:
    """One plan carried out, and what it cost."""

    def __init__(self, plan: Plan, first_choice: int, seen: RequestObserver) -> None:
        self.plan = plan
        self.lengths = [0] * plan.n  # tokens of each choice so far
        self.prompt_tokens = plan.large.count(plan.prompt)
        self.sampled_tokens = 0
        self.scored_tokens = 0
        self.provider_usage = ProviderUsage()
        self.trace = SearchTree(keep_tree=plan.guidance is not None and plan.guidance.trace)
        self._first_choice = first_choice
        self._seen = seen
        self._root = Hypothesis(key=root_key(plan.seed))

    async def events(self, ticket: Ticket) -> AsyncGenerator[PromptEvent]:
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
            self.provider_usage += proposals.provider_usage

    async def _plain(self, proposals: Proposals) -> AsyncGenerator[TextCommitted | ChoiceFinished]:
        keys = [successor_key(self._root.key, 0, i) for i in range(self.plan.n)]
        samples = [self._sample(proposals, i, replace(self._root, key=key)) for i, key in enumerate(keys)]
        async with aclosing(merge(samples)) as events:
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
            proposer = (
                EarlyScoringProposer(proposals, scoring) if isinstance(proposals, AsCompletedProposals) else proposals
            )
            rounds = search(
                self._seen.proposes(proposer),
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
            self.provider_usage += scoring.provider_usage
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
            self.provider_usage += scoring.provider_usage
        answer = replace(self._root, score=score.total, scores=score.pairs)
        return [event for i in range(self.plan.n) for event in self._finish(self._writer(i), answer)]

    def _finish(self, writer: ChoiceWriter, answer: Hypothesis) -> list[TextCommitted | ChoiceFinished]:
        answer = replace(answer, finish_reason=answer.finish_reason or "length")
        self.lengths[writer.index - self._first_choice] = answer.length
        return writer.finish(answer, guided=self.plan.ranked)

    def _writer(self, choice: int) -> ChoiceWriter:
        index, plan = self._first_choice + choice, self.plan
        if plan.with_tokens:
            return TokenWriter(index, plan.sampling, plan.large.decoder)
        return ChoiceWriter(index, plan.sampling.stop)

    async def _read_prompt(self) -> PromptRead:
        large, prompt, top = self.plan.large, self.plan.prompt, self.plan.prompt_logprobs
        found = None if top is None else await large.prompt_logprobs(prompt, top=top)
        shown = self.plan.pair_prompt
        text = shown.text + (self.plan.scored or "") if isinstance(shown, TextPrompt) else ""
        choices = range(self._first_choice, self._first_choice + self.plan.n)
        return PromptRead(choices, text, placed_prompt(large.decoder, prompt, found) if large.token_ids else ())


def _padded(beam: Sequence[Hypothesis], n: int) -> list[Hypothesis]:
    """n answers, best first. Merging can leave fewer than were asked for; the last one then stands for the rest."""
    return [*beam[:n], *[beam[-1]] * (n - len(beam))]
