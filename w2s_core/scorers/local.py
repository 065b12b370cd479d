"""A pair in a local worker: log π_tuned − log π_untuned of whole answers, each model in its own tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from w2s_core.concurrency import all_of
from w2s_core.device.jobs import ScoreResult
from w2s_core.device.pool import WorkerPool
from w2s_core.device.session import Session
from w2s_core.errors import ConfigurationError, ContextLengthError, RequestError
from w2s_core.growing_text import GrowingText
from w2s_core.text import TextCodec
from w2s_core.types import Bought, ChatPrompt, Hypothesis, Prompt, Score, TokenPrompt, Tokens

_PROMPT = "{prompt}"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One model of a pair: its name in the pool and its tokenizer. `shares_tokens`: its vocabulary is the large
    model's, id for id, so that answers need no translation."""

    name: str
    codec: TextCodec
    shares_tokens: bool


class LocalScorer:
    """`template`: see `PairConfig.prompt_template`. Raises ConfigurationError when the models cannot do with it."""

    def __init__(self, pool: WorkerPool, tuned: LocalModel, untuned: LocalModel, template: str | None) -> None:
        self._pool = pool
        self._models = (tuned, untuned)
        self._template = template
        for model in self._models:
            if template is None and not model.codec.has_chat_template:
                raise ConfigurationError(
                    f"{model.name}: its tokenizer has no chat template, so the pair needs a prompt_template."
                )
            if template == "" and not model.codec.start:
                raise ConfigurationError(f"{model.name}: it has no BOS, so it cannot score behind an empty prompt.")

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        """Tokens of answer for which there is room, where the vocabulary is shared; elsewhere only the text tells."""
        room = max_tokens
        for model in self._models:
            limit = self._pool.info(model.name).longest
            used = len(self._prompt(model, prompt))
            if used >= limit:
                field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
                raise ContextLengthError(limit, used, 1, field)
            if model.shares_tokens:
                room = min(room, limit - used)
        return room

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[LocalScoring]:
        async with self._pool.session(0, {model.name for model in self._models}) as session:
            limits = [self._pool.info(model.name).longest for model in self._models]
            prompts = [self._prompt(model, prompt) for model in self._models]
            yield LocalScoring(session, self._models, prompts, limits)

    def _prompt(self, model: LocalModel, prompt: Prompt) -> Tokens:
        """What this model sees before the answer."""
        assert not isinstance(prompt, TokenPrompt)  # `LargeModel.text_of` has decoded those
        if self._template is None:
            if isinstance(prompt, ChatPrompt):
                return model.codec.encode_chat(prompt.messages)
            text = prompt.text
        else:
            raw = _last_user_message(prompt) if isinstance(prompt, ChatPrompt) else prompt.text
            text = self._template.replace(_PROMPT, raw)
        return model.codec.encode(text, special_tokens=True) or model.codec.start


class LocalScoring:
    """One prompt's view of the pair."""

    bought = Bought()

    def __init__(
        self, session: Session, models: Sequence[LocalModel], prompts: Sequence[Tokens], limits: Sequence[int]
    ) -> None:
        self.scored_tokens = 0
        self._session = session
        self._models = models
        self._prompts = prompts
        self._limits = limits
        # One reading serves both models where they have one tokenizer.
        self._texts = {model.codec.tokenization: GrowingText(model.codec) for model in models}

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        texts = {name: text.encode(candidates) for name, text in self._texts.items()}
        answers = [self._answers(model, candidates, texts[model.codec.tokenization]) for model in self._models]
        tuned, untuned = await all_of([self._logprobs(i, answers[i]) for i in range(2)])
        self.scored_tokens += tuned.tokens_run + untuned.tokens_run
        return [Score(t - u) for t, u in zip(tuned.logprobs, untuned.logprobs, strict=True)]

    @staticmethod
    def _answers(model: LocalModel, candidates: Sequence[Hypothesis], texts: Sequence[Tokens]) -> list[Tokens]:
        """Each answer in this model's tokens, its EOS behind those that the large model ended.

        The large model's own tokens serve where it has the same; but a stop string may have cut one of them in two, and
        then only the text tells what the answer is.
        """
        eos = () if model.codec.eos is None else (model.codec.eos,)
        return [
            (y.tokens if model.shares_tokens and (y.ended or not y.finished) else text) + (eos if y.ended else ())
            for y, text in zip(candidates, texts, strict=True)
        ]

    async def _logprobs(self, which: int, answers: Sequence[Tokens]) -> ScoreResult:
        model, prompt, limit = self._models[which], self._prompts[which], self._limits[which]
        longest = max(map(len, answers), default=0)
        if len(prompt) + longest > limit:
            raise RequestError(
                f"The answer has outgrown the pair: {len(prompt)} + {longest} tokens exceed the {limit} tokens of "
                f"{model.name}. Please lower max_tokens.",
                "max_tokens",
            )
        return await self._session.score(model.name, prompt, answers)


def _last_user_message(prompt: ChatPrompt) -> str:
    for message in reversed(prompt.messages):
        if message["role"] == "user":
            content = message["content"]
            return content if isinstance(content, str) else "".join(part["text"] for part in content)
    return ""
