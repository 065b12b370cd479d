"""The large model in the local worker pool."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import Self

from w2s_core.errors import RequestError
from w2s_core.large.prompts import decode_prompt, encode_prompt, extend_prompt
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.large.token_sampling import check_possible, check_token_ids, resolve_sampling
from w2s_core.pool.messages import Expert, Row, Sampling
from w2s_core.pool.pool import WorkerPool
from w2s_core.pool.session import SampleStream, Session
from w2s_core.search.randomness import successor_key
from w2s_core.structured.grammar_checker import GrammarChecker
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import (
    Alternatives,
    Grammar,
    Hypothesis,
    Prompt,
    PromptLogprobs,
    ProviderUsage,
    SamplingParams,
    Tokens,
)

_STOP_CHECK_INTERVAL = 16  # tokens between two searches for stop strings while a long chunk is drawn


class LocalLargeModel:
    """A `LargeModel` in the worker pool. `model` is its name there.

    `tool_format`, `reasoning_format`: as `LargeModel`'s. `default_sampling` comes from its `generation_config.json`.
    `checker` must be stopped with the model, because it may have started a process.
    """

    def __init__(
        self,
        model: str,
        tokenizer: HFTokenizer,
        pool: WorkerPool,
        tool_format: str | None = None,
        default_sampling: SamplingParams | None = None,
        *,
        reasoning_format: str | None = None,
    ) -> None:
        self.tool_format, self.reasoning_format = tool_format, reasoning_format
        self.default_sampling = default_sampling or SamplingParams()
        self.checker = GrammarChecker(tokenizer.tokenizer_json, tokenizer.eos)
        self._tokenizer = tokenizer
        self._model = model
        self._pool = pool
        self._experts: tuple[Expert, ...] = ()
        self._plausibility = 0.0

    @property
    def vocabulary(self) -> int:
        """The number of its token ids. Available once the pool has started."""
        return self._pool.info(self._model).vocabulary

    def with_experts(self, experts: tuple[Expert, ...], plausibility: float) -> Self:
        """The same model, whose draws these experts change (`worker.proxy_tuning`); see `Guidance.plausibility`."""
        steered = copy(self)
        steered._experts, steered._plausibility = experts, plausibility
        return steered

    @property
    def decoder(self) -> HFTokenizer:
        return self._tokenizer

    @property
    def context_length(self) -> int:
        return self._pool.info(self._model).max_length

    @property
    def tokenizer(self) -> HFTokenizer:
        return self._tokenizer

    def check(self, sampling: SamplingParams) -> None:
        info = self._pool.info(self._model)
        check_token_ids(sampling, info.vocabulary)
        resolved = resolve_sampling(sampling, self._tokenizer, info.vocabulary)
        if resolved.bans_tokens:
            check_possible(resolved, info.eos, info.vocabulary)

    @property
    def supports_chunked_grammar(self) -> bool:
        return True

    async def check_grammar(self, grammar: Grammar) -> Grammar:
        if not self._pool.info(self._model).eos:
            raise RequestError("Grammars need an EOS token, which this model does not have.", grammar.field)
        return await self.checker.check(grammar)

    def encode(self, prompt: Prompt) -> Tokens:
        return encode_prompt(self._tokenizer, prompt, self.vocabulary)

    @property
    def exposes_token_ids(self) -> bool:
        return True

    def count_tokens(self, prompt: Tokens) -> int:
        return len(prompt)

    def longest_answer(self, drawn: int, chunk_length: int | None) -> int:  # noqa: ARG002
        return drawn

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return decode_prompt(self._tokenizer, prompt)

    def prompt_text(self, prompt: Tokens) -> str:
        return self._tokenizer.verbatim.decode(prompt)

    def extend_prompt(self, prompt: Tokens, answer: Tokens, text: str = "") -> Tokens:
        return extend_prompt(self._tokenizer, prompt, answer, text)

    @asynccontextmanager
    async def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AsyncIterator[LocalProposals]:
        async with self._pool.session(rows, {self._model, *(expert.model for expert in self._experts)}) as session:
            resolved = resolve_sampling(sampling, self._tokenizer, self.vocabulary)
            resolved = replace(resolved, plausibility=self._plausibility)
            successors = SuccessorBuilder(self._tokenizer, prompt, sampling)
            yield LocalProposals(self._model, session, prompt, resolved, successors, experts=self._experts)

    async def prompt_logprobs(self, prompt: Tokens, *, top: int) -> PromptLogprobs:
        # This session leaves the prompt's KV in the prefix cache, for the generation that follows.
        async with self._pool.session(0, {self._model}) as session:
            return await session.prompt_logprobs(self._model, prompt, top)


class LocalProposals:
    """One prompt's session with a model in the pool."""

    provider_usage = ProviderUsage()

    def __init__(
        self,
        model: str,
        session: Session,
        prompt: Tokens,
        sampling: Sampling,
        successors: SuccessorBuilder,
        *,
        experts: tuple[Expert, ...] = (),
    ) -> None:
        self.prompt_tokens = len(prompt)
        self._model = model
        self._session = session
        self._prompt = prompt
        self._sampling = sampling
        self._successors = successors
        self._experts = experts
        self._streams: set[SampleStream] = set()  # that are open
        self._drawn = 0  # tokens of closed streams
        self._cached_tokens: int | None = None  # as the first stream was told

    @property
    def sampled_tokens(self) -> int:
        return self._drawn + sum(stream.drawn for stream in self._streams)

    @property
    def cached_tokens(self) -> int:
        return self._cached_tokens or 0

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        parents = [(y, index) for y in beam for index in range(k)]
        self._successors.prune(beam)
        latest: dict[int, Hypothesis] = {}
        report_every = _STOP_CHECK_INTERVAL if self._successors.stops else length
        async with aclosing(self._draw(parents, length, report_every)) as successors:
            async for row, successor in successors:
                latest[row] = successor
        return [latest[row] for row in range(len(parents))]

    async def grow(self, hypothesis: Hypothesis, *, length: int) -> AsyncGenerator[Hypothesis]:
        async with aclosing(self._draw([(hypothesis, 0)], length, report_every=1)) as successors:
            async for _, successor in successors:
                yield successor

    async def _draw(
        self, parents: Sequence[tuple[Hypothesis, int]], length: int, report_every: int
    ) -> AsyncGenerator[tuple[int, Hypothesis]]:
        """Draws one successor for each (parent, index), and yields (row, successor) as it grows.

        `report_every`: tokens between two updates of a row.
        """
        rows = [Row(y.tokens, successor_key(y.key, len(y.tokens), index), length) for y, index in parents]
        async with self._stream(rows, report_every) as stream, aclosing(stream.updates()) as updates:
            tokens: list[Tokens] = [()] * len(rows)
            logprobs: list[tuple[float, ...]] = [()] * len(rows)
            alternatives: list[tuple[Alternatives, ...]] = [()] * len(rows)
            async for update in updates:
                row = update.row
                already_decoded = len(tokens[row])
                tokens[row] += update.tokens
                logprobs[row] += update.logprobs
                alternatives[row] += update.alternatives
                parent, index = parents[row]
                successor = self._successors.build(
                    parent,
                    index,
                    tokens[row],
                    logprobs[row],
                    ended=update.ended,
                    already_decoded=already_decoded,
                    ending=update.ending,
                    alternatives=alternatives[row],
                )
                if successor.finished:
                    stream.stop(row)
                yield row, successor

    @asynccontextmanager
    async def _stream(self, rows: Sequence[Row], report_every: int) -> AsyncIterator[SampleStream]:
        """Samples these rows; what was drawn by the end counts as sampled, however it ends."""
        stream = self._session.sample(
            self._model, self._prompt, rows, self._sampling, report_every=report_every, experts=self._experts
        )
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.remove(stream)
            self._drawn += stream.drawn
            if self._cached_tokens is None:
                self._cached_tokens = stream.cached_tokens
