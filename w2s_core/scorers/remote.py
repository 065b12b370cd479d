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
from w2s_core.remote.completion import Completion
from w2s_core.remote.discovery import Discovery, listed_context_length
from w2s_core.remote.prompt_logprobs import PROBE, Way, ask, find_way
from w2s_core.remote.provider import Provider
from w2s_core.scorers.pair_model import PairModel, shown
from w2s_core.text.retokenizer import GrowingText
from w2s_core.text.tokenizer import TextCodec
from w2s_core.types import Bought, ChatPrompt, Hypothesis, Prompt, Score, Tokens

A = TypeVar("A", Tokens, str)  # an answer, as it is sent
Pending: TypeAlias = Sequence[asyncio.Task[float]]


@dataclass(frozen=True, slots=True)
class PairFacts:
    """How this provider tells log-probabilities; `context_length` in tokens, None where it does not tell that."""

    way: Way
    context_length: int | None


async def ask_pair(provider: Provider, config: RemoteModelConfig, codec: TextCodec | None, key: str) -> PairFacts:
    """`key`: the configuration's. Raises ConfigurationError, and what `Provider.post` raises."""
    length = config.context_length or await listed_context_length(provider)
    tokens = None if codec is None else codec.encode(PROBE, special_tokens=True)
    return PairFacts(await find_way(provider, tokens, key), length)


class RemotePairModel:
    """One model of a pair behind a provider. `reader` None: without a tokenizer, so only text goes there, an answer's
    end is not scored, and conversations need a template."""

    def __init__(self, provider: Provider, reader: PairModel | None, discovery: Discovery[PairFacts]) -> None:
        self.provider = provider
        self.reader = reader
        self.discovery = discovery

    def check_template(self, template: str | None) -> None:
        """Raises ConfigurationError."""
        if self.reader is not None:
            self.reader.check_template(template)
        elif template == "":
            raise ConfigurationError(f"{self.provider.name}: an empty prompt_template needs a tokenizer, for its BOS.")

    def check(self, prompt: Prompt, template: str | None, max_tokens: int) -> int:
        """As `Scorer.check`."""
        limit = self.discovery.found.context_length
        if self.reader is not None and limit is not None:
            return self.reader.room(prompt, template, limit, max_tokens)
        if self.reader is None and template is None and isinstance(prompt, ChatPrompt):
            raise RequestError(
                f"The pair's provider `{self.provider.name}` has no tokenizer to render a conversation with.",
                "messages",
            )
        if self.reader is None and not isinstance(prompt, ChatPrompt) and not shown(prompt, template):
            raise RequestError(
                f"The pair's provider `{self.provider.name}` has no tokenizer: the prompt must not be empty.",
                "prompt",
            )
        return max_tokens

    def open(self, prompt: Prompt, template: str | None) -> TokenReading | TextReading:
        if self.reader is None:
            return TextReading(self, shown(prompt, template))
        return TokenReading(self, self.reader, self.reader.prompt(prompt, template))


class TokenReading:
    """One prompt's answers in one model's token ids."""

    def __init__(self, model: RemotePairModel, reader: PairModel, prompt: Tokens) -> None:
        self.bought = Bought()
        self._model = model
        self._reader = reader
        self._prompt = prompt
        self._text = GrowingText(reader.codec)
        self._affinity = crc32(repr(prompt).encode())
        self._asked = _Asked(self._logprob)

    def ask(self, candidates: Sequence[Hypothesis]) -> Pending:
        """The log-probability of each whole answer, in nats."""
        answers = self._reader.answers(candidates, self._text.encode(candidates))
        limit = self._model.discovery.found.context_length
        if limit is not None:
            self._reader.check_length(self._prompt, answers, limit)
        return self._asked.begin(answers)

    async def aclose(self) -> None:
        await self._asked.aclose()

    async def _logprob(self, answer: Tokens) -> float:
        if not answer:
            return 0.0
        way = self._model.discovery.found.way
        completion = await ask(self._model.provider, way, [*self._prompt, *answer], self._affinity)
        self.bought += completion.bought
        return way.of_tokens(completion.choices[0], self._prompt, answer)


class TextReading:
    """One prompt's answers as text, for a model whose tokenizer only its provider has."""

    def __init__(self, model: RemotePairModel, prompt: str) -> None:
        self.bought = Bought()
        self._model = model
        self._prompt = prompt
        self._affinity = crc32(prompt.encode())
        self._asked = _Asked(self._logprob)

    def ask(self, candidates: Sequence[Hypothesis]) -> Pending:
        """Of each whole answer's text, in nats; see `Way.of_text` for a token that straddles its beginning."""
        return self._asked.begin([y.text for y in candidates])

    async def aclose(self) -> None:
        await self._asked.aclose()

    async def _logprob(self, answer: str) -> float:
        if not answer:
            return 0.0
        way = self._model.discovery.found.way
        completion = await ask(self._model.provider, way, self._prompt + answer, self._affinity)
        self.bought += completion.bought
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
    def bought(self) -> Bought:
        return sum((reading.bought for reading in self._readings), Bought())

    @property
    def scored_tokens(self) -> int:
        return self.bought.prompt_tokens

    async def expect(self, candidates: Sequence[Hypothesis]) -> None:
        for reading in self._readings:
            reading.ask(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        asked = [reading.ask(candidates) for reading in self._readings]
        tuned, untuned = await asyncio.gather(*(asyncio.gather(*pending) for pending in asked))
        return [Score(t - u) for t, u in zip(tuned, untuned, strict=True)]


def _prompt_tokens(completion: Completion) -> int | None:
    return completion.usage.prompt_tokens if completion.usage else None
