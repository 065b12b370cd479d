"""A provider's answer, checked: what `/completions` returns at OpenAI, vLLM, SGLang and here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_core.errors import UpstreamError
from w2s_core.types import ProviderUsage

FLOOR = -9999.0  # nats; what −inf becomes, as vLLM and OpenAI do


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Logprobs(_Part):
    """In parallel: each token's text, log-probability in nats, the likeliest tokens in its place, and where its text
    begins in the answer's (or, with `echo`, in prompt and answer)."""

    tokens: list[str] = Field(default_factory=list)
    token_logprobs: list[float | None] = Field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class TokenLogprob(_Part):
    logprob: float


class Choice(_Part):
    """`token_ids`, `stop_reason` and `prompt_logprobs` are vLLM's: the drawn tokens, what ended the answer if it was
    not the model's own EOS, and per prompt token the log-probability of (at least) that token by its id."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, TokenLogprob] | None] | None = None
    logprobs: Logprobs | None = None


class TokenCounts(_Part):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Completion(_Part):
    choices: list[Choice] = Field(min_length=1)
    usage: TokenCounts | None = None

    @property
    def provider_usage(self) -> ProviderUsage:
        """As the provider counts; where it does not, the completion's tokens as far as it tells them."""
        if self.usage is not None:
            return ProviderUsage(1, self.usage.prompt_tokens, self.usage.completion_tokens or 0)
        return ProviderUsage(1, 0, sum(len(choice.logprobs.tokens) for choice in self.choices if choice.logprobs))


def read_completion(answer: Mapping[str, Any], who: str) -> Completion:
    """Raises UpstreamError, naming the field that makes no sense and never its value."""
    try:
        return Completion.model_validate(answer)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise UpstreamError(f"The provider of `{who}` sent an answer whose `{field}` makes no sense.") from None


def nats(value: float | None) -> float:
    """A log-probability as it is counted here; None, which a first token has, is certainty."""
    return 0.0 if value is None else max(value, FLOOR)
