"""The response schema of `/completions` at OpenAI, vLLM, SGLang and this server, validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_core.errors import UpstreamError
from w2s_core.types import MIN_LOGPROB, ProviderUsage

COMPLETIONS_PATH = "/completions"


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Logprobs(_Schema):
    """OpenAI's legacy log-probabilities, as parallel lists.

    Each token's text, its log-probability in nats, the top log-probabilities in its place, and the offset of its text
    in the answer's (with `echo`, in prompt and answer).
    """

    tokens: list[str] = Field(default_factory=list)
    token_logprobs: list[float | None] = Field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class TokenLogprob(_Schema):
    """An entry of vLLM's `prompt_logprobs`."""

    logprob: float


class Choice(_Schema):
    """One choice of a completion.

    Three fields are vLLM's: `token_ids`, the drawn tokens; `stop_reason`, what ended the answer if it was not the
    model's EOS; `prompt_logprobs`, per prompt token the log-probability of (at least) that token, by its id.
    """

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, TokenLogprob] | None] | None = None
    logprobs: Logprobs | None = None


class TokenCounts(_Schema):
    """The field `usage`."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Completion(_Schema):
    """A response of `/completions`."""

    choices: list[Choice] = Field(min_length=1)
    usage: TokenCounts | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt as the provider counts them; None where it does not."""
        return self.usage.prompt_tokens if self.usage else None

    @property
    def provider_usage(self) -> ProviderUsage:
        """One call and its tokens: by `usage`, or else the completion's tokens as far as `logprobs` has them."""
        if self.usage is not None:
            return ProviderUsage(1, self.usage.prompt_tokens, self.usage.completion_tokens or 0)
        return ProviderUsage(1, 0, sum(len(choice.logprobs.tokens) for choice in self.choices if choice.logprobs))


def read_completion(answer: Mapping[str, Any], provider_name: str) -> Completion:
    """Validates a response. Raises UpstreamError, which names the invalid field and never its value."""
    try:
        return Completion.model_validate(answer)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise UpstreamError(
            f"The provider of `{provider_name}` sent a completion whose `{field}` is invalid."
        ) from None


def nats(value: float | None) -> float:
    """A log-probability of at least `MIN_LOGPROB`. None, which a sequence's first token has, counts as 0."""
    return 0.0 if value is None else max(value, MIN_LOGPROB)
