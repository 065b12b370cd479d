"""The large model behind a provider's completion API (vLLM, SGLang, OpenAI, another instance of this server)."""

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
from w2s_core.remote.completion import COMPLETIONS_PATH, Completion, read_completion
from w2s_core.remote.provider import Provider
from w2s_core.search.randomness import call_seed
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Grammar, Hypothesis, Prompt, PromptLogprobs, ProviderUsage, SamplingParams, Tokens

_MAX_CALLS = 3  # calls to get all choices that were asked for
_FIRST_CALL_TOKENS, _MAX_CALL_TOKENS = 4, 64  # tokens of one call while a plain answer streams


class RemoteLargeModel:
    """A `LargeModel` at a provider.

    `probe` starts and stops the provider. Until it has reached the provider, members that depend on its capabilities
    raise UnavailableError.
    """

    default_sampling = SamplingParams()  # a provider's files are not known

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
        self._text_dialect = TextDialect(provider.name, tokenizer)
        self._token_id_dialect = None if tokenizer is None else TokenIdDialect(provider.name, tokenizer)

    @property
    def context_length(self) -> int:
        return self._probe.capabilities.context_length

    @property
    def decoder(self) -> TokenDecoder:
        return self._dialect.decoder

    def check(self, sampling: SamplingParams) -> None:
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

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return self._dialect.decode_prompt(prompt)

    @asynccontextmanager
    async def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AsyncIterator[RemoteProposals]:  # noqa: ARG002
        dialect = self._dialect
        successors = SuccessorBuilder(dialect.decoder, prompt if self.exposes_token_ids else (), sampling)
        session = dialect.open(prompt, sampling)
        proposals = RemoteProposals(self._provider, session, successors, sampling, affinity(prompt))
        proposals.prompt_tokens = dialect.count_tokens(prompt)
        yield proposals

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

    def __init__(
        self,
        provider: Provider,
        session: DialectSession,
        successors: SuccessorBuilder,
        sampling: SamplingParams,
        affinity: int,
    ) -> None:
        self.sampled_tokens = 0
        self.prompt_tokens = 0
        self.provider_usage = ProviderUsage()
        self._provider = provider
        self._session = session
        self._affinity = affinity
        self._greedy = sampling.temperature == 0
        self._max_tokens = sampling.max_tokens
        self._grammar = sampling.grammar
        self._successors = successors

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
        call_tokens, last = _FIRST_CALL_TOKENS if self._grammar is None else length, hypothesis
        end = len(hypothesis.tokens) + length
        while len(last.tokens) < end and not last.finished:
            [choice] = await self._draw(last, 1, min(call_tokens, end - len(last.tokens)))
            last = self._build(last, 0, choice)
            call_tokens = min(2 * call_tokens, _MAX_CALL_TOKENS)
            yield last
            if not choice.advances:
                return

    async def _successors_of(self, parent: Hypothesis, k: int, length: int) -> list[Hypothesis]:
        # Greedy successors are all equal, and vLLM refuses n > 1 at temperature 0.
        choices = await self._draw(parent, 1, length) * k if self._greedy else await self._draw(parent, k, length)
        return [self._build(parent, index, choice) for index, choice in enumerate(choices)]

    async def _draw(self, parent: Hypothesis, n: int, length: int) -> list[DrawnChoice]:
        """Draws n i.i.d. chunks; calls again for those that a provider left out.

        A chunk without one whole character is drawn anew, longer, except near max_tokens, where an answer may end.
        Raises UpstreamError when choices are still missing after `_MAX_CALLS` calls.
        """
        room = length if self._max_tokens is None else self._max_tokens - len(parent.tokens)
        if room < 1:  # longer chunks have used it up
            return [DrawnChoice((), (), ended=False)] * n
        length = min(length, room)
        near_max_tokens = self._max_tokens is not None and length + self._session.retry_tokens > room
        drawn: list[DrawnChoice] = []
        for attempt in range(_MAX_CALLS):
            body = {
                **self._session.request_body(parent, length + attempt * self._session.retry_tokens),
                "n": n - len(drawn),
                "seed": call_seed(parent.key, len(parent.tokens), attempt),
            }
            completion = await self._call(body)
            if not parent.tokens and completion.usage and not self.prompt_tokens:
                self.prompt_tokens = completion.usage.prompt_tokens
            choices = sorted(completion.choices, key=lambda choice: choice.index)
            parsed = [self._session.parse(choice, length, exact=near_max_tokens) for choice in choices]
            drawn += [choice for choice in parsed if choice.advances or near_max_tokens]
            if len(drawn) >= n:
                return drawn[:n]
        raise UpstreamError(f"The provider of `{self._provider.name}` returned {len(drawn)} of {n} choices.")

    async def _call(self, body: dict[str, object]) -> Completion:
        provider = self._provider
        try:
            body = {"model": provider.config.model, **body}
            answer = await provider.post(COMPLETIONS_PATH, body, affinity=self._affinity)
        except RequestError as error:  # the provider says that the prompt is too long
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

    def _build(self, parent: Hypothesis, index: int, choice: DrawnChoice) -> Hypothesis:
        return self._successors.build(
            parent,
            index,
            choice.tokens,
            choice.logprobs,
            ended=choice.ended,
            ending=choice.ending,
            alternatives=choice.alternatives,
        )


def affinity(prompt: Tokens) -> int:
    """A hash of the prompt, equal in every process, so that replicas choose the endpoint that has its prefix cached."""
    return crc32(array("q", prompt).tobytes())
