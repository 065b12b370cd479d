"""The large model behind a provider's completion API (vLLM, SGLang, OpenAI, another instance of this server)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import repeat, takewhile
from zlib import crc32

from w2s_core.aio import merge
from w2s_core.errors import RequestError, UnavailableError, UpstreamError
from w2s_core.interfaces import TokenDecoder
from w2s_core.large.capabilities import LargeModelCapabilities
from w2s_core.large.dialects import Dialect, DrawnChoice, TextDialect, TokenIdDialect
from w2s_core.large.parameters import check_schema
from w2s_core.large.sampling_calls import SamplingCalls
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.remote.provider import Provider
from w2s_core.search.randomness import call_seed
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Grammar, Hypothesis, Prompt, PromptLogprobs, ProviderUsage, SamplingParams, Tokens

_RETRY_AFTER_S = 5
_MAX_CALLS = 3  # calls to get all choices that were asked for
_FIRST_CALL_TOKENS, _MAX_CALL_TOKENS = 4, 64  # tokens of one call while a plain answer streams


class RemoteLargeModel:
    """A `LargeModel` at a provider.

    `probe` starts and stops the provider. Until it has reached the provider, members that depend on its capabilities
    raise UnavailableError.
    """

    def __init__(
        self,
        provider: Provider,
        tokenizer: HFTokenizer | None,
        probe: CapabilityProbe[LargeModelCapabilities],
        tool_format: str | None = None,
        reasoning_format: str | None = None,
        *,
        default_sampling: SamplingParams | None = None,
    ) -> None:
        self.tool_format, self.reasoning_format = tool_format, reasoning_format
        self.default_sampling = default_sampling or SamplingParams()  # mostly a provider's files are not known
        self._provider = provider
        self._probe = probe
        self.tokenizer = tokenizer
        self._text_dialect = TextDialect(provider.name, tokenizer)
        self._token_id_dialect = None if tokenizer is None else TokenIdDialect(provider.name, tokenizer)

    @property
    def context_length(self) -> int:
        return self._probe.capabilities.context_length

    @property
    def decoder(self) -> TokenDecoder:
        return self._dialect.decoder

    def check(self, sampling: SamplingParams) -> None:
        if not self._provider.available:
            raise UnavailableError(f"The provider of `{self._provider.name}` is down.", _RETRY_AFTER_S)
        self._dialect.check(sampling)

    @property
    def supports_chunked_grammar(self) -> bool:
        return False  # a call that continues an answer would begin the grammar anew

    async def check_grammar(self, grammar: Grammar) -> Grammar:
        if not self.exposes_token_ids:
            raise RequestError(f"The provider of `{self._provider.name}` does not support grammars.", grammar.field)
        check_schema(grammar)  # the provider checks the rest
        return grammar

    def encode(self, prompt: Prompt) -> Tokens:
        return self._dialect.encode(prompt)

    @property
    def exposes_token_ids(self) -> bool:
        return self._dialect is self._token_id_dialect

    def count_tokens(self, prompt: Tokens) -> int:
        return self._dialect.count_tokens(prompt)

    def longest_answer(self, drawn: int, chunk_length: int | None) -> int:
        length, spare = 0, self._dialect.spare_tokens
        for size in takewhile(_MAX_CALL_TOKENS.__gt__, _call_sizes()) if chunk_length is None else ():
            if drawn <= size + spare:
                return length + min(drawn, size)
            length, drawn = length + size, drawn - size - spare
        size = _MAX_CALL_TOKENS if chunk_length is None else chunk_length
        calls, rest = divmod(drawn, size + spare)
        return length + calls * size + min(rest, size)  # the last call asks for no more than the answer may still have

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return self._dialect.decode_prompt(prompt)

    def prompt_text(self, prompt: Tokens) -> str:
        return self._dialect.prompt_text(prompt)

    def extend_prompt(self, prompt: Tokens, answer: Tokens, text: str = "") -> Tokens:
        return self._dialect.extend_prompt(prompt, answer, text)

    @asynccontextmanager
    async def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AsyncIterator[RemoteProposals]:  # noqa: ARG002
        streams = self._probe.capabilities.streams
        calls = SamplingCalls(self._provider, affinity(prompt), streams=streams, grammar=sampling.grammar)
        successors = SuccessorBuilder(self._dialect.decoder, prompt if self.exposes_token_ids else (), sampling)
        yield RemoteProposals(calls, self._dialect, prompt, sampling, successors)

    async def prompt_logprobs(self, prompt: Tokens, *, top: int) -> PromptLogprobs:  # noqa: ARG002
        raise RequestError(
            f"`{self._provider.name}` is a remote model, for which prompt_logprobs are not supported.",
            "prompt_logprobs",
        )

    @property
    def _dialect(self) -> Dialect:
        if self._probe.capabilities.token_ids and self._token_id_dialect:
            return self._token_id_dialect
        return self._text_dialect


class RemoteProposals:
    """One prompt's session with a provider's model. It holds nothing there: every call carries the whole prefix."""

    cached_tokens = 0

    def __init__(
        self,
        calls: SamplingCalls,
        dialect: Dialect,
        prompt: Tokens,
        sampling: SamplingParams,
        successors: SuccessorBuilder,
    ) -> None:
        self.prompt_tokens = dialect.count_tokens(prompt)
        self._calls = calls
        self._session = dialect.open(prompt, sampling)
        self._spare_tokens = dialect.spare_tokens
        self._greedy = sampling.temperature == 0
        self._max_tokens = sampling.max_tokens
        self._grammar = sampling.grammar
        self._successors = successors

    @property
    def sampled_tokens(self) -> int:
        return self._calls.sampled_tokens

    @property
    def provider_usage(self) -> ProviderUsage:
        return self._calls.provider_usage

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        by_parent = {index: ys async for index, ys in self.propose_as_completed(beam, k=k, length=length)}
        return [y for index in range(len(beam)) for y in by_parent[index]]

    async def propose_as_completed(
        self, beam: Sequence[Hypothesis], *, k: int, length: int
    ) -> AsyncGenerator[tuple[int, list[Hypothesis]]]:
        """As `w2s_core.engine.early_scoring.AsCompletedProposals.propose_as_completed`."""
        self._successors.prune(beam)

        async def propose_one(index: int) -> AsyncGenerator[tuple[int, list[Hypothesis]]]:
            yield index, await self._successors_of(beam[index], k, length)

        async with aclosing(merge([propose_one(index) for index in range(len(beam))])) as completed:
            async for index, successors in completed:
                yield index, successors

    async def grow(self, hypothesis: Hypothesis, *, length: int) -> AsyncGenerator[Hypothesis]:
        # A grammar is drawn in one call, because every call would begin it anew.
        call_sizes = _call_sizes() if self._grammar is None else repeat(length)
        last, end, drawn = hypothesis, len(hypothesis.tokens) + length, DrawnChoice((), (), ended=False)
        while len(last.tokens) < end and not last.finished:
            [more] = await self._draw(last, 1, min(next(call_sizes), end - len(last.tokens)))
            longer = drawn + more
            last = self._build(hypothesis, 0, longer, already_decoded=len(drawn.tokens))
            drawn = longer
            yield last
            if not more.advances:
                return

    async def _successors_of(self, parent: Hypothesis, k: int, length: int) -> list[Hypothesis]:
        # Greedy successors are all equal, and vLLM refuses n > 1 at temperature 0.
        choices = await self._draw(parent, 1, length) * k if self._greedy else await self._draw(parent, k, length)
        return [self._build(parent, index, choice) for index, choice in enumerate(choices)]

    async def _draw(self, parent: Hypothesis, n: int, length: int) -> list[DrawnChoice]:
        """Draws n i.i.d. chunks; calls again for those that a provider left out.

        A chunk without one whole character is drawn anew, longer. Raises UpstreamError when choices are still missing
        after `_MAX_CALLS` calls.
        """
        room = sys.maxsize if self._max_tokens is None else self._max_tokens - len(parent.tokens)
        if room < 1:  # longer chunks have used it up
            return [DrawnChoice((), (), ended=False)] * n
        length = min(length, room)
        drawn: list[DrawnChoice] = []
        for attempt in range(_MAX_CALLS):
            asked = min(length + (1 + attempt) * self._spare_tokens, room)
            body = {
                **self._session.request_body(parent, asked),
                "n": n - len(drawn),
                "seed": call_seed(parent.key, len(parent.tokens), attempt),
            }
            completion = await self._calls(body)
            if not parent.tokens and completion.usage and not self.prompt_tokens:
                self.prompt_tokens = completion.usage.prompt_tokens
            choices = sorted(completion.choices, key=lambda choice: choice.index)
            parsed = [self._session.parse(choice, length, room) for choice in choices]
            drawn += [choice for choice in parsed if choice.advances]
            if len(drawn) >= n:
                return drawn[:n]
        raise UpstreamError(f"The provider of `{self._calls.provider_name}` returned {len(drawn)} of {n} choices.")

    def _build(self, parent: Hypothesis, index: int, choice: DrawnChoice, *, already_decoded: int = 0) -> Hypothesis:
        return self._successors.build(
            parent,
            index,
            choice.tokens,
            choice.logprobs,
            ended=choice.ended,
            ending=choice.ending,
            alternatives=choice.alternatives,
            already_decoded=already_decoded,
        )


def _call_sizes() -> Iterator[int]:
    """Tokens of each call while a plain answer streams: 4, 8, 16, 32, 64, 64, …"""
    size = _FIRST_CALL_TOKENS
    while True:
        yield size
        size = min(2 * size, _MAX_CALL_TOKENS)


def affinity(prompt: Tokens) -> int:
    """A hash of the prompt, equal in every process, so that replicas choose the endpoint that has its prefix cached."""
    return crc32(array("q", prompt).tobytes())
