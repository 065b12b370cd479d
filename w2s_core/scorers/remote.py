"""A pair behind providers: log π_tuned − log π_untuned of whole answers, read anew every time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar
from zlib import crc32

from w2s_core.config import RemoteModelConfig
from w2s_core.errors import ConfigurationError, RequestError
from w2s_core.remote.capability_probe import CapabilityProbe, listed_context_length
from w2s_core.remote.completion import Completion
from w2s_core.remote.prompt_logprobs import PROBE, LogprobMethod, ask, probe_logprob_method
from w2s_core.remote.provider import Provider
from w2s_core.scorers.pair_model import PairModel, pair_prompt_text
from w2s_core.text.retokenizer import Retokenizer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, ProviderUsage, Score, Tokens

A = TypeVar("A", Tokens, str)  # an answer, as it is sent
Pending: TypeAlias = Sequence[asyncio.Task[float]]


@dataclass(frozen=True, slots=True)
class PairCapabilities:
    """How this provider tells log-probabilities; `context_length` in tokens, None where it does not tell that."""

    way: LogprobMethod
    context_length: int | None


async def probe_pair_model(
    provider: Provider, config: RemoteModelConfig, tokenizer: HFTokenizer | None, key: str
) -> PairCapabilities:
    """`key`: the configuration's. Raises ConfigurationError, and what `Provider.post` raises."""
    length = config.context_length or await listed_context_length(provider)
    tokens = None if tokenizer is None else tokenizer.encode(PROBE, special_tokens=True)
    return PairCapabilities(await probe_logprob_method(provider, tokens, key), length)


class RemotePairModel:
    """One model of a pair behind a provider. `reader` None: without a tokenizer, so only text goes there, an answer's
    end is not scored, and conversations need a template."""

    def __init__(self, provider: Provider, reader: PairModel | None, probe: CapabilityProbe[PairCapabilities]) -> None:
        self.provider = provider
        self.reader = reader
        self.probe = probe

    def check_template(self, template: str | None) -> None:
        """Raises ConfigurationError."""
        if self.reader is not None:
            self.reader.check_template(template)
        elif template == "":
            raise ConfigurationError(f"{self.provider.name}: an empty prompt_template needs a tokenizer, for its BOS.")

    def check(self, prompt: Prompt, template: str | None, max_tokens: int) -> int:
        """As `Scorer.check`."""
        limit = self.probe.capabilities.context_length
        if self.reader is not None and limit is not None:
            return self.reader.room(prompt, template, limit, max_tokens)
        if self.reader is None and template is None and isinstance(prompt, ChatPrompt):
            raise RequestError(
                f"The pair's provider `{self.provider.name}` has no tokenizer to render a conversation with.",
                "messages",
            )
        if self.reader is None and not isinstance(prompt, ChatPrompt) and not pair_prompt_text(prompt, template):
            raise RequestError(
                f"The pair's provider `{self.provider.name}` has no tokenizer: the prompt must not be empty.",
                "prompt",
            )
        return max_tokens

    def open(self, prompt: Prompt, template: str | None) -> TokenReading | TextReading:
        if self.reader is None:
            return TextReading(self, pair_prompt_text(prompt, template))
        return TokenReading(self, self.reader, self.reader.prompt(prompt, template))


class TokenReading:
    """One prompt's answers in one model's token ids."""

    def __init__(self, model: RemotePairModel, reader: PairModel, prompt: Tokens) -> None:
        self.provider_usage = ProviderUsage()
        self._model = model
        self._reader = reader
        self._prompt = prompt
        self._text = Retokenizer(reader.tokenizer)
        self._affinity = crc32(repr(prompt).encode())
        self._asked = _Asked(self._logprob)

    def ask(self, candidates: Sequence[Hypothesis]) -> Pending:
        """The log-probability of each whole answer, in nats."""
        answers = self._reader.answers(candidates, self._text.encode(candidates))
        limit = self._model.probe.capabilities.context_length
        if limit is not None:
            self._reader.check_length(self._prompt, answers, limit)
        return self._asked.begin(answers)

    async def aclose(self) -> None:
        await self._asked.aclose()

    async def _logprob(self, answer: Tokens) -> float:
        if not answer:
            return 0.0
        way = self._model.probe.capabilities.way
        completion = await ask(self._model.provider, way, [*self._prompt, *answer], self._affinity)
        self.provider_usage += completion.provider_usage
        return way.of_tokens(completion.choices[0], self._prompt, answer)


class TextReading:
    """One prompt's answers as text, for a model whose tokenizer only its provider has."""

    def __init__(self, model: RemotePairModel, prompt: str) -> None:
        self.provider_usage = ProviderUsage()
        self._model = model
        self._prompt = prompt
        self._affinity = crc32(prompt.encode())
        self._asked = _Asked(self._logprob)

    def ask(self, candidates: Sequence[Hypothesis]) -> Pending:
        """The log-probability of each whole answer's text, in nats. See `LogprobMethod.of_text`."""
        return self._asked.begin([y.text for y in candidates])

    async def aclose(self) -> None:
        await self._asked.aclose()

    async def _logprob(self, answer: str) -> float:
        if not answer:
            return 0.0
        way = self._model.probe.capabilities.way
        completion = await ask(self._model.provider, way, self._prompt + answer, self._affinity)
        self.provider_usage += completion.provider_usage
        return way.of_text(completion.choices[0], answer, _prompt_tokens(completion))


class _Asked(Generic[A]):
    """A model's opinions of answers, asked for once each, all at the same time, and kept as long as they are named.

    Calls go on while nobody waits for them, until `aclose`.
    """

    def __init__(self, ask: Callable[[A], Coroutine[Any, Any, float]]) -> None:
        self._ask: Callable[[A], Coroutine[Any, Any, float]] = ask
        self._tasks: dict[A, asyncio.Task[float]] = {}

    def begin(self, answers: Sequence[A]) -> Pending:
        before, self._tasks = self._tasks, {}
        for answer in answers:
            known = before.pop(answer, None) or self._tasks.get(answer)
            self._tasks[answer] = asyncio.create_task(self._ask(answer)) if known is None or _failed(known) else known
        for task in before.values():
            if not _failed(task):  # which has looked at its error, that nobody else will
                task.cancel()
        return [self._tasks[answer] for answer in answers]

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _failed(task: asyncio.Task[float]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


class RemoteScorer:
    """`template`: see `PairConfig.prompt_template`. Raises ConfigurationError when the models cannot do with it."""

    def __init__(self, tuned: RemotePairModel, untuned: RemotePairModel, template: str | None) -> None:
        self._models = (tuned, untuned)
        self._template = template
        for model in self._models:
            model.check_template(template)

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return min(model.check(prompt, self._template, max_tokens) for model in self._models)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[RemoteScoring]:
        readings = [model.open(prompt, self._template) for model in self._models]
        try:
            yield RemoteScoring(readings)
        finally:
            for reading in readings:
                await reading.aclose()


class RemoteScoring:
    """One prompt's view of the pair. Both models read all candidates at the same time."""

    def __init__(self, readings: Sequence[TokenReading | TextReading]) -> None:
        self._readings = readings

    @property
    def provider_usage(self) -> ProviderUsage:
        return sum((reading.provider_usage for reading in self._readings), ProviderUsage())

    @property
    def scored_tokens(self) -> int:
        return self.provider_usage.prompt_tokens

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        for reading in self._readings:
            reading.ask(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        asked = [reading.ask(candidates) for reading in self._readings]
        tuned, untuned = await asyncio.gather(*(asyncio.gather(*pending) for pending in asked))
        return [Score(t - u) for t, u in zip(tuned, untuned, strict=True)]


def _prompt_tokens(completion: Completion) -> int | None:
    return completion.usage.prompt_tokens if completion.usage else None
