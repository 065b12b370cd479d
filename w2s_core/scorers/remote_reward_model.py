"""A reward model at a provider: its reward of the prompt and each whole answer, all sent anew after every chunk."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias
from zlib import crc32

from w2s_core.errors import ConfigurationError, RequestError
from w2s_core.remote.capability_probe import CapabilityProbe
from w2s_core.remote.classification import ClassifierCapabilities, ClassifierInput, classify, log_odds
from w2s_core.remote.provider import Provider
from w2s_core.scorers.pair_model import PairModel, pair_prompt_text
from w2s_core.scorers.provider_calls import ProviderCalls
from w2s_core.text.retokenizer import Retokenizer
from w2s_core.types import ChatPrompt, Hypothesis, Prompt, ProviderUsage, Score

Encode: TypeAlias = Callable[[Sequence[Hypothesis]], Sequence[ClassifierInput]]


class RemoteRewardModel:
    """A `Scorer` whose model is at a provider.

    `encoder` encodes prompts and answers. Without it (None) text is sent, an answer's end is not scored, and
    conversations need a `template`, see `RewardModelConfig.prompt_template`. Raises ConfigurationError where the model
    cannot use it.
    """

    def __init__(
        self,
        provider: Provider,
        encoder: PairModel | None,
        probe: CapabilityProbe[ClassifierCapabilities],
        template: str | None,
    ) -> None:
        self._provider = provider
        self._encoder = encoder
        self._probe = probe
        self._template = template
        if encoder is not None:
            encoder.check_template(template)
        elif template == "":
            raise ConfigurationError(
                f"reward_models.{provider.name}: an empty prompt_template needs a tokenizer, for its BOS; set "
                "`tokenizer`."
            )

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        limit, name = self._probe.capabilities.context_length, self._provider.name
        if self._encoder is not None:
            return self._encoder.max_answer_tokens(prompt, self._template, limit or sys.maxsize, max_tokens)
        if self._template is None and isinstance(prompt, ChatPrompt):
            raise RequestError(
                f"The reward model `{name}` has neither a tokenizer nor a prompt_template, one of which conversations "
                "need.",
                "messages",
            )
        if not isinstance(prompt, ChatPrompt) and not pair_prompt_text(prompt, self._template):
            raise RequestError(
                f"The prompt must not be empty, because the reward model `{name}` has no tokenizer.", "prompt"
            )
        return max_tokens

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[RemoteRewardScoring]:
        capabilities = self._probe.capabilities
        scoring = RemoteRewardScoring(self._provider, capabilities, self._encode(prompt, capabilities.context_length))
        try:
            yield scoring
        finally:
            await scoring.aclose()

    def _encode(self, prompt: Prompt, limit: int | None) -> Encode:
        """Returns the function that turns answers into what is sent for them."""
        if self._encoder is None:
            text = pair_prompt_text(prompt, self._template)
            return lambda candidates: [text + y.text for y in candidates]
        encoder, tokens = self._encoder, self._encoder.prompt(prompt, self._template)
        retokenizer = Retokenizer(encoder.tokenizer, tokens)

        def encode(candidates: Sequence[Hypothesis]) -> Sequence[ClassifierInput]:
            answers = encoder.answers(candidates, retokenizer.encode(candidates))
            encoder.check_length(tokens, candidates, answers, limit or sys.maxsize)
            return [tokens + answer for answer in answers]

        return encode


class RemoteRewardScoring(ProviderCalls[ClassifierInput, Mapping[ClassifierInput, float]]):
    """One prompt's session with the model: one call for all candidates that are new.

    A call is kept as long as each `score` or `prefetch` names one of its candidates, and is cancelled by one that does
    not.
    """

    def __init__(self, provider: Provider, capabilities: ClassifierCapabilities, encode: Encode) -> None:
        super().__init__()
        self.provider_usage = ProviderUsage()
        self._provider = provider
        self._capabilities = capabilities
        self._encode = encode
        self._affinity = crc32(repr(encode([Hypothesis()])).encode())  # of the prompt

    @property
    def scored_tokens(self) -> int:
        return self.provider_usage.prompt_tokens

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        self._start(self._encode(candidates))

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        inputs = self._encode(candidates)
        self._start(inputs)
        rewards: dict[ClassifierInput, float] = {}
        for found in await asyncio.gather(*set(self._tasks.values())):
            rewards |= found
        return [Score(rewards[each]) for each in inputs]

    def _start(self, inputs: Sequence[ClassifierInput]) -> None:
        """Starts a call for those inputs that are new, or whose call has failed."""
        distinct = dict.fromkeys(inputs)
        tasks = {each: task for each in distinct if (task := self._task(each))}
        if new := [each for each in distinct if each not in tasks]:
            tasks |= dict.fromkeys(new, asyncio.create_task(self._rewards(new)))
        self._replace(tasks)

    async def _rewards(self, inputs: Sequence[ClassifierInput]) -> Mapping[ClassifierInput, float]:
        capabilities = self._capabilities
        found = await classify(self._provider, capabilities.endpoint, inputs, self._affinity)
        self.provider_usage += found.provider_usage
        rewards = [log_odds(outputs, capabilities.output) for outputs in found.outputs]
        return dict(zip(inputs, rewards, strict=True))
