"""A fake large model and fake scorers, without torch: small alphabets, exact probabilities, the real protocols."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from w2s_core.config import Limits, ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.engine.events import ChoiceFinished, RequestFinished, TextCommitted
from w2s_core.errors import RequestError
from w2s_core.large.successors import SuccessorBuilder
from w2s_core.large.token_sampling import check_token_ids
from w2s_core.search.randomness import successor_key, uniform
from w2s_core.text.token_bytes import decode_utf8
from w2s_core.types import (
    Alternatives,
    ChatPrompt,
    GenerationRequest,
    Grammar,
    Guidance,
    Hypothesis,
    Prompt,
    PromptLogprobs,
    ProviderUsage,
    SamplingParams,
    Score,
    TextPrompt,
    TokenPrompt,
    Tokens,
    TokenText,
)

EOS = 256
Distribution = Callable[[Tokens, Tokens], Mapping[int, float]]


class ByteTokenizer:
    """Token i is byte i; EOS is `<eos>` where special tokens show. Looks like `HFTokenizer`."""

    def __init__(self, *, special_tokens_show: bool = False) -> None:
        self.special_tokens_show = special_tokens_show

    @property
    def verbatim(self) -> ByteTokenizer:
        return ByteTokenizer(special_tokens_show=True)

    @property
    def size(self) -> int:
        return EOS + 1

    def encode(self, text: str, *, special_tokens: bool = False) -> Tokens:
        return tuple(text.encode())

    def encode_chat(self, prompt: ChatPrompt) -> Tokens:
        return self.encode("".join(f"<{m['role']}>{m['content']}" for m in prompt.messages))

    def convert_ids_to_tokens(self, tokens: Sequence[int]) -> list[str]:
        return [chr(token) for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        eos = b"<eos>" if self.special_tokens_show else b""
        return b"".join(bytes([t]) if t < EOS else eos for t in tokens).decode("utf-8", "replace")

    def token_text(self, token: int) -> TokenText:
        return TokenText(decode_utf8(bytes([token])), bytes([token])) if token < EOS else TokenText("<eos>", None)


BYTE_TOKENIZER = ByteTokenizer()


def letters(alphabet: str = "ab ", eos: float = 0.1) -> Distribution:
    """Every letter equally likely, whatever came before."""
    share = (1 - eos) / len(alphabet)
    table = {ord(c): share for c in alphabet} | ({EOS: eos} if eos else {})
    return lambda prompt, answer: table


class FakeLargeModel:
    """Draws with the product's own noise from `distribution(prompt, answer)`, a map from token to probability.

    `gate`, when given, is awaited before every chunk or token, so that a test decides when the model goes on.
    """

    def __init__(
        self,
        distribution: Distribution | None = None,
        *,
        context_length: int = 1000,
        gate: Callable[[], Any] | None = None,
        tokenizer: Any = BYTE_TOKENIZER,
    ) -> None:
        self.tokenizer = tokenizer
        self.tool_format: str | None = None
        self.reasoning_format: str | None = None
        self.default_sampling = SamplingParams()
        self.distribution = distribution or letters()
        self.context_length = context_length
        self.decoder = ByteTokenizer()
        self.exposes_token_ids = True
        self.gate = gate
        self.open_sessions = 0
        self.calls: list[tuple[int, int, int]] = []  # (hypotheses, k, length) of each propose

    def check(self, sampling: SamplingParams) -> None:
        check_token_ids(sampling, EOS + 1)

    supports_chunked_grammar = True

    async def check_grammar(self, grammar: Grammar) -> Grammar:
        raise RequestError("Fakes follow no grammar.", grammar.field)

    def encode(self, prompt: Prompt) -> Tokens:
        if isinstance(prompt, TokenPrompt):
            return prompt.tokens
        if isinstance(prompt, ChatPrompt):
            roles = {message["role"] for message in prompt.messages}
            if "tool" in roles:
                raise RequestError("The template knows no tools.", "messages")
            return self.decoder.encode_chat(prompt)
        return self.decoder.encode(prompt.text)

    def count_tokens(self, prompt: Tokens) -> int:
        return len(prompt)

    def longest_answer(self, drawn: int, chunk_length: int | None) -> int:
        return drawn

    def decode_prompt(self, prompt: Prompt) -> Prompt:
        return TextPrompt(self.decoder.decode(prompt.tokens)) if isinstance(prompt, TokenPrompt) else prompt

    def prompt_text(self, prompt: Tokens) -> str:
        return self.decoder.decode(prompt)

    def extend_prompt(self, prompt: Tokens, answer: Tokens, text: str = "") -> Tokens:
        return prompt + answer + self.decoder.encode(text)

    @asynccontextmanager
    async def open(self, prompt: Tokens, sampling: SamplingParams, *, rows: int) -> AsyncIterator[FakeProposals]:
        self.open_sessions += 1
        try:
            yield FakeProposals(self, prompt, sampling)
        finally:
            self.open_sessions -= 1

    async def prompt_logprobs(self, prompt: Tokens, *, top: int) -> PromptLogprobs:
        tables = [self.distribution(prompt[:i], ()) for i in range(1, len(prompt))]
        chances = [table.get(token, 0.0) for table, token in zip(tables, prompt[1:], strict=True)]
        nats = [math.log(p) if p else -math.inf for p in chances]
        ranks = [1 + sum(q > p for q in table.values()) for table, p in zip(tables, chances, strict=True)]
        return PromptLogprobs(tuple(nats), tuple(ranks), tuple(_alternatives(table, top) for table in tables))


class FakeProposals:
    provider_usage = ProviderUsage()

    def __init__(self, model: FakeLargeModel, prompt: Tokens, sampling: SamplingParams) -> None:
        self.sampled_tokens = self.cached_tokens = 0
        self.prompt_tokens = len(prompt)
        self._model = model
        self._prompt = prompt
        self._sampling = sampling
        self._successors = SuccessorBuilder(model.decoder, prompt, sampling)  # type: ignore[arg-type]

    async def propose(self, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        self._model.calls.append((len(beam), k, length))
        self._successors.prune(beam)
        await self._wait()
        return [self._successor(parent, index, length) for parent in beam for index in range(k)]

    async def grow(self, hypothesis: Hypothesis, *, length: int) -> AsyncGenerator[Hypothesis]:
        last = hypothesis
        for _ in range(length):
            await self._wait()
            last = self._successor(last, 0, 1)
            yield last
            if last.finished:
                return

    async def _wait(self) -> None:
        await asyncio.sleep(0)
        if self._model.gate:
            await self._model.gate()

    def _successor(self, parent: Hypothesis, index: int, length: int) -> Hypothesis:
        key = successor_key(parent.key, len(parent.tokens), index)
        tokens, logprobs, alternatives, ended = list(parent.tokens), [], [], False
        while len(tokens) < len(parent.tokens) + length and not ended:
            token, probability = self._draw(tuple(tokens), uniform(key, len(tokens)))
            logprobs.append(math.log(probability))
            if self._sampling.logprobs:
                table = self._model.distribution(self._prompt, tuple(tokens))
                alternatives.append(_alternatives(table, self._sampling.logprobs))
            ended = token == EOS
            if not ended:
                tokens.append(token)
        self.sampled_tokens += len(logprobs)
        new = tuple(tokens[len(parent.tokens) :])
        return self._successors.build(
            parent,
            index,
            new,
            tuple(logprobs),
            ended=ended,
            ending=token if ended else None,
            alternatives=tuple(alternatives),
        )

    def _draw(self, answer: Tokens, u: float) -> tuple[int, float]:
        table = self._model.distribution(self._prompt, answer)
        if self._sampling.temperature == 0:
            return max(table.items(), key=lambda item: item[1])
        total = 0.0
        for token, probability in table.items():
            total += probability
            if u < total:
                return token, probability
        return token, probability


def _alternatives(table: Mapping[int, float], count: int) -> Alternatives:
    best = sorted(table.items(), key=lambda item: -item[1])[:count]
    return tuple((token, math.log(probability)) for token, probability in best)


class FakeScorer:
    """The log-ratio is any function of (text, ended); by default it likes the letter `a`."""

    def __init__(self, nats: Callable[[str, bool], float] | None = None, *, room: int | None = None) -> None:
        self.nats = nats or (lambda text, ended: text.count("a") - 0.5 * text.count("b"))
        self.room = room
        self.open_sessions = 0
        self.prompts: list[Prompt] = []
        self.seen: list[list[Hypothesis]] = []

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return max_tokens if self.room is None else min(self.room, max_tokens)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[FakeScoring]:
        self.prompts.append(prompt)
        self.open_sessions += 1
        try:
            yield FakeScoring(self)
        finally:
            self.open_sessions -= 1


class FakeScoring:
    provider_usage = ProviderUsage()

    def __init__(self, scorer: FakeScorer) -> None:
        self.scored_tokens = 0
        self._scorer = scorer

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        await self.score(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        await asyncio.sleep(0)
        self._scorer.seen.append(list(candidates))
        self.scored_tokens += sum(len(y.tokens) for y in candidates)
        return [Score(self._scorer.nats(y.text, y.ended)) for y in candidates]


DEFAULT_GUIDANCE = Guidance("cbs", {"positive": 1.0}, beam_width=2, successors=2, chunk_length=3)


def fake_engine(
    large: FakeLargeModel | None = None,
    scorers: Mapping[str, FakeScorer] | None = None,
    *,
    guidance: Guidance = DEFAULT_GUIDANCE,
    limits: Limits | None = None,
) -> Engine:
    """Serves `plain` and `guided`, both over the same fake large model; pairs `positive` and `polite`."""
    scorers = scorers or {"positive": FakeScorer(), "polite": FakeScorer(lambda text, ended: -float(len(text)))}
    served = {"plain": ServedModelConfig("large"), "guided": ServedModelConfig("large", guidance)}
    return Engine({"large": large or FakeLargeModel()}, scorers, served, limits=limits)


async def answer(engine: Engine, request: GenerationRequest) -> list[Hypothesis]:
    """The choices in order, after checking that what was streamed is the answer and that usage counts it."""
    texts: dict[int, str] = {}
    found: dict[int, Hypothesis] = {}
    async for event in engine.generate(request):
        match event:
            case TextCommitted():
                texts[event.index] = texts.get(event.index, "") + event.text
            case ChoiceFinished():
                found[event.index] = event.hypothesis
                assert texts.get(event.index, "") == event.hypothesis.text
            case RequestFinished():
                assert event.completion_tokens == sum(y.length for y in found.values())
    return [found[i] for i in sorted(found)]
