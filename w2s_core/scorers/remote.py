"""A pair at providers: log π_tuned − log π_untuned of whole answers, which are sent anew after every chunk."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar
from zlib import crc32

from w2s_core.config import RemoteModelConfig
from w2s_core.errors import ConfigurationError, RequestError
from w2s_core.remote.capability_probe import PROBE_TEXT, CapabilityProbe, listed_context_length
from w2s_core.remote.prompt_logprobs import LogprobMethod, probe_logprob_method, request_logprobs
from w2s_core.remote.provider import Provider
from w2s_core.scorers.pair_model import PairModel, log_ratios, pair_prompt_text
from w2s_core.scorers.provider_calls import ProviderCalls
from w2s_core.text.retokenizer import Retokenizer
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, ProviderUsage, Score, Tokens

A = TypeVar("A", Tokens, str)  # an answer, as it is sent
LogprobTasks: TypeAlias = Sequence[asyncio.Task[float]]


@dataclass(frozen=True, slots=True)
class PairCapabilities:
    """How a provider returns a prompt's log-probabilities, and its context length in tokens where it lists one."""

    logprob_method: LogprobMethod
    context_length: int | None


async def probe_pair_model(
    provider: Provider, config: RemoteModelConfig, tokenizer: HFTokenizer | None, key: str
) -> PairCapabilities:
    """Finds out what the provider can do.

    Raises ConfigurationError, which names `key` (the model's place in the configuration), and what `Provider.post`
    raises.
    """
    length = config.context_length or await listed_context_length(provider)
    tokens = None if tokenizer is None else tokenizer.encode(PROBE_TEXT, special_tokens=True)
    return PairCapabilities(await probe_logprob_method(provider, tokens, key), length)


class RemotePairModel:
    """One model of a pair at a provider.

    `encoder` encodes prompts and answers. Without it (None) text is sent, an answer's end is not scored, and
    conversations need a `prompt_template`.
    """

    def __init__(self, provider: Provider, encoder: PairModel | None, probe: CapabilityProbe[PairCapabilities]) -> None:
        self.provider = provider
        self.encoder = encoder
        self.probe = probe

    def check_template(self, template: str | None) -> None:
        """Raises ConfigurationError where the model cannot use this template."""
        if self.encoder is not None:
            self.encoder.check_template(template)
        elif template == "":
            raise ConfigurationError(
                f"{self.provider.name}: an empty prompt_template needs a tokenizer, for its BOS; set `tokenizer`."
            )

    def check(self, prompt: Prompt, template: str | None, max_tokens: int) -> int:
        """As `Scorer.check`, for this model."""
        limit = self.probe.capabilities.context_length
        if self.encoder is not None and limit is not None:
            return self.encoder.max_answer_tokens(prompt, template, limit, max_tokens)
        if self.encoder is None and template is None and isinstance(prompt, ChatPrompt):
            raise RequestError(
                f"The pair's model `{self.provider.name}` has neither a tokenizer nor a prompt_template, one of which "
                "conversations need.",
                "messages",
            )
        if self.encoder is None and not isinstance(prompt, ChatPrompt) and not pair_prompt_text(prompt, template):
            raise RequestError(
                f"The prompt must not be empty, because the pair's model `{self.provider.name}` has no tokenizer.",
                "prompt",
            )
        return max_tokens

    def open(self, prompt: Prompt, template: str | None) -> TokenLogprobs | TextLogprobs:
        """Opens a session for one prompt."""
        if self.encoder is None:
            return TextLogprobs(self, pair_prompt_text(prompt, template))
        return TokenLogprobs(self, self.encoder, self.encoder.prompt(prompt, template))


class _Logprobs(ProviderCalls[A, float], ABC):
    """One prompt's session with one model of a pair: one call per distinct answer, all at the same time.

    A call is kept as long as each `start` names its answer, and is cancelled by one that does not, or by `cancel`.
    """

    def __init__(self, model: RemotePairModel) -> None:
        super().__init__()
        self.provider_usage = ProviderUsage()
        self._model = model

    @abstractmethod
    async def _logprob(self, answer: A) -> float:
        """The answer's log-probability in nats, by a call to the provider."""

    def _start(self, answers: Sequence[A]) -> LogprobTasks:
        """Returns the answers' tasks, in order. Starts those that are new, and those that have failed before."""
        tasks = {each: self._task(each) or asyncio.create_task(self._logprob(each)) for each in dict.fromkeys(answers)}
        self._replace(tasks)
        return [tasks[answer] for answer in answers]


class TokenLogprobs(_Logprobs[Tokens]):
    """One prompt's session with one model of a pair, in token ids."""

    def __init__(self, model: RemotePairModel, encoder: PairModel, prompt: Tokens) -> None:
        super().__init__(model)
        self._encoder = encoder
        self._prompt = prompt
        self._retokenizer = Retokenizer(encoder.tokenizer, prompt)
        self._affinity = crc32(repr(prompt).encode())

    def start(self, candidates: Sequence[Hypothesis]) -> LogprobTasks:
        """Starts the calls; each task returns log p(answer | prompt) of a whole answer, in nats."""
        answers = self._encoder.answers(candidates, self._retokenizer.encode(candidates))
        limit = self._model.probe.capabilities.context_length
        if limit is not None:
            self._encoder.check_length(self._prompt, candidates, answers, limit)
        return self._start(answers)

    async def _logprob(self, answer: Tokens) -> float:
        if not answer:
            return 0.0
        method = self._model.probe.capabilities.logprob_method
        prompt = [*self._prompt, *answer]
        completion = await request_logprobs(self._model.provider, method, prompt, self._affinity)
        self.provider_usage += completion.provider_usage
        return method.sum_of_tokens(completion.choices[0], self._prompt, answer)


class TextLogprobs(_Logprobs[str]):
    """One prompt's session with one model of a pair, in text, where only the provider has the tokenizer."""

    def __init__(self, model: RemotePairModel, prompt: str) -> None:
        super().__init__(model)
        self._prompt = prompt
        self._affinity = crc32(prompt.encode())

    def start(self, candidates: Sequence[Hypothesis]) -> LogprobTasks:
        """As `TokenLogprobs.start`, of each answer's text. See `LogprobMethod.sum_of_text`."""
        return self._start([y.text for y in candidates])

    async def _logprob(self, answer: str) -> float:
        if not answer:
            return 0.0
        method = self._model.probe.capabilities.logprob_method
        completion = await request_logprobs(self._model.provider, method, self._prompt + answer, self._affinity)
        self.provider_usage += completion.provider_usage
        return method.sum_of_text(completion.choices[0], answer, completion.prompt_tokens)


class RemoteScorer:
    """A `Scorer` whose two models are at providers. Without `untuned` scores are log π_tuned alone.

    `template`: see `PairConfig.prompt_template`. Raises ConfigurationError where a model cannot use it.
    """

    def __init__(self, tuned: RemotePairModel, untuned: RemotePairModel | None, template: str | None) -> None:
        self._models = (tuned,) if untuned is None else (tuned, untuned)
        self._template = template
        for model in self._models:
            model.check_template(template)

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return min(model.check(prompt, self._template, max_tokens) for model in self._models)

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[RemoteScoring]:
        sessions = [model.open(prompt, self._template) for model in self._models]
        try:
            yield RemoteScoring(sessions)
        finally:
            for session in sessions:  # all of them first, because this task may be cancelled while it waits
                session.cancel()
            for session in sessions:
                await session.aclose()


class RemoteScoring:
    """One prompt's session with the pair: one call per model and candidate, all at the same time."""

    def __init__(self, sessions: Sequence[TokenLogprobs | TextLogprobs]) -> None:
        self._sessions = sessions

    @property
    def provider_usage(self) -> ProviderUsage:
        return sum((session.provider_usage for session in self._sessions), ProviderUsage())

    @property
    def scored_tokens(self) -> int:
        return self.provider_usage.prompt_tokens

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        for session in self._sessions:
            session.start(candidates)

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        tasks = [session.start(candidates) for session in self._sessions]
        return log_ratios(await asyncio.gather(*(asyncio.gather(*model_tasks) for model_tasks in tasks)))
