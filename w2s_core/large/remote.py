"""The large model behind somebody else's completion API."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from zlib import crc32

from w2s_core.aio import merge
from w2s_core.errors import RequestError, UpstreamError, UpstreamRefusedError
from w2s_core.interfaces import TokenDecoder
from w2s_core.large.capabilities import LargeModelCapabilities
from w2s_core.large.dialects import Dialect, DialectSession, DrawnChoice, TextDialect, TokenIdDialect
from w2s_core.large.parameters import check_schema
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.remote.completion import Completion, read_completion
from w2s_core.remote.provider import Provider
from w2s_core.search.randomness import call_seed
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Grammar, Hypothesis, Prompt, PromptLogprobs, ProviderUsage, SamplingParams, Tokens

PATH = "/completions"
_ATTEMPTS = 3  # at getting all choices that were asked for
_FIRST_PIECE, _LARGEST_PIECE = 4, 64  # tokens asked for at once where text shall come as it is drawn


class RemoteLargeModel:
    """`probe` starts and stops the provider. Until that has been reached nothing can be asked of the model."""

    def __init__(
        self,
        provider: Provider,
        tokenizer: HFTokenizer | None,
        probe: CapabilityProbe[LargeModelCapabilities],
        tool_format: str | None = None,
    ) -> None:
        self.tool_format = tool_format
        self._provider = provider
        self._probe = probe
        self.tokenizer = tokenizer
        self._by_text = TextDialect(provider.name, tokenizer)
        self._by_tokens = None if tokenizer is None else TokenIdDialect(provider.name, tokenizer)

    @property
    def context_length(self) -> int:
        return self._probe.found.context_length

    @property
    def decoder(self) -> TokenDecoder:
        return self._language.decoder

    def check(self, sampling: SamplingParams) -> None:
        self._language.check(sampling)

    @property
    def continues_grammars(self) -> bool:
        return False  # a call that begins in the middle of an answer would begin the grammar anew

    async def check_grammar(self, grammar: Grammar) -> Grammar:
        if not self.token_ids:
            raise RequestError(f"The provider of `{self._provider.name}` cannot follow it.", grammar.field)
        check_schema(grammar)  # the rest of it the provider knows better
        return grammar

    def encode(self, prompt: Prompt) -> Tokens:
        return self._language.encode(prompt)

    @property
    def token_ids(self) -> bool:
        return self._language is self._by_tokens

    def count(self, prompt: Tokens) -> int:
        return self._language.count(prompt)

    def text_of(self, prompt: Prompt) -> Prompt:
        return self._language.text_of(prompt)

    @asynccontextmanager
    async def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AsyncIterator[RemoteProposals]:  # noqa: ARG002
        language = self._language
        successors = SuccessorBuilder(language.decoder, sampling)
        wire = language.wire(prompt, sampling)
        session = RemoteProposals(self._provider, wire, successors, sampling, affinity(prompt))
        session.prompt_tokens = language.count(prompt)
        yield session

    async def prompt_logprobs(self, prompt: Tokens, *, top: int) -> PromptLogprobs:  # noqa: ARG002
        raise RequestError(f"`{self._provider.name}` does not tell its prompts' log-probabilities.", "prompt_logprobs")

    @property
    def _language(self) -> Dialect:
        speaks_tokens = self._probe.found.token_ids
        return self._by_tokens if speaks_tokens and self._by_tokens else self._by_text


class RemoteProposals:
    """One prompt's view of a provider's model. Holds nothing there: every call carries the whole prefix."""

    def __init__(
        self,
        provider: Provider,
        wire: DialectSession,
        successors: SuccessorBuilder,
        sampling: SamplingParams,
        affinity: int,
    ) -> None:
        self.sampled_tokens = 0
        self.prompt_tokens = 0
        self.provider_usage = ProviderUsage()
        self._provider = provider
        self._wire = wire
        self._affinity = affinity
        self._greedy = sampling.temperature == 0
        self._most = sampling.max_tokens
        self._grammar = sampling.grammar
        self._successors = successors

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        families = {index: family async for index, family in self.propose_as_completed(beam, k=k, length=length)}
        return [y for index in range(len(beam)) for y in families[index]]

    async def propose_as_completed(
        self, beam: Sequence[Hypothesis], *, k: int, length: int
    ) -> AsyncGenerator[tuple[int, list[Hypothesis]]]:
        """As `w2s_core.engine.early_scoring.AsCompletedProposals.propose_as_completed`."""
        self._successors.forget_all_but(beam)

        async def family(index: int) -> AsyncGenerator[tuple[int, list[Hypothesis]]]:
            yield index, await self._family(beam[index], k, length)

        async with aclosing(merge([family(index) for index in range(len(beam))])) as families:
            async for arrived in families:
                yield arrived

    async def grow(self, hypothesis: Hypothesis, *, length: int) -> AsyncGenerator[Hypothesis]:
        piece, last = _FIRST_PIECE if self._grammar is None else length, hypothesis
        end = len(hypothesis.tokens) + length
        while len(last.tokens) < end and not last.finished:
            [drawn] = await self._draw(last, 1, min(piece, end - len(last.tokens)))
            last = self._successor(last, 0, drawn)
            piece = min(2 * piece, _LARGEST_PIECE)
            yield last
            if not drawn.usable:
                return

    async def _family(self, parent: Hypothesis, k: int, length: int) -> list[Hypothesis]:
        # Greedy successors are all the same one, and vLLM refuses to draw it more than once.
        drawn = await self._draw(parent, 1, length) * k if self._greedy else await self._draw(parent, k, length)
        return [self._successor(parent, index, one) for index, one in enumerate(drawn)]

    async def _draw(self, parent: Hypothesis, n: int, length: int) -> list[DrawnChoice]:
        """n i.i.d. chunks. A provider that answers fewer is asked for the others.

        A chunk without one whole character is drawn anew, longer, unless max_tokens are near: there an answer may end.
        """
        room = length if self._most is None else self._most - len(parent.tokens)
        if room < 1:  # longer chunks have used it up
            return [DrawnChoice((), (), ended=False)] * n
        length = min(length, room)
        at_the_end = self._most is not None and length + self._wire.spare > room
        drawn: list[DrawnChoice] = []
        for attempt in range(_ATTEMPTS):
            asked = {
                **self._wire.ask(parent, length + attempt * self._wire.spare),
                "n": n - len(drawn),
                "seed": call_seed(parent.key, len(parent.tokens), attempt),
            }
            completion = await self._call(asked)
            if not parent.tokens and completion.usage and not self.prompt_tokens:
                self.prompt_tokens = completion.usage.prompt_tokens
            choices = sorted(completion.choices, key=lambda choice: choice.index)
            read = [self._wire.read(choice, length, exact=at_the_end) for choice in choices]
            drawn += [one for one in read if one.usable or at_the_end]
            if len(drawn) >= n:
                return drawn[:n]
        raise UpstreamError(f"The provider of `{self._provider.name}` answered {len(drawn)} of {n} choices.")

    async def _call(self, asked: dict[str, object]) -> Completion:
        provider = self._provider
        try:
            answer = await provider.post(PATH, {"model": provider.config.model, **asked}, affinity=self._affinity)
        except RequestError as error:  # it says that the prompt is too long
            error.param = error.param or "prompt"
            raise
        except UpstreamRefusedError as error:
            if self._grammar is None:
                raise
            raise RequestError(str(error), self._grammar.field) from None
        completion = read_completion(answer, provider.name)
        self.provider_usage += completion.provider_usage
        self.sampled_tokens += completion.provider_usage.completion_tokens
        return completion

    def _successor(self, parent: Hypothesis, index: int, drawn: DrawnChoice) -> Hypothesis:
        return self._successors.make(
            parent,
            index,
            drawn.tokens,
            drawn.logprobs,
            ended=drawn.ended,
            ending=drawn.ending,
            alternatives=drawn.alternatives,
        )


def affinity(prompt: Tokens) -> int:
    """The same for the same prompt in every process, so that its prefix is found where it was cached."""
    return crc32(array("q", prompt).tobytes())
