"""The response schema of `/completions` at OpenAI, vLLM, SGLang and this server, validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_core.errors import UpstreamError
from w2s_core.types import MIN_LOGPROB, ProviderUsage

COMPLETIONS_PATH = "/completions"

T = TypeVar("T")
_List = Annotated[list[T], Field(fail_fast=True)]  # of a long list that is invalid throughout, one error is enough
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Nats = Annotated[float, Field(allow_inf_nan=False, le=1e-3)]  # of a probability of at most 1, which may be rounded


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


S = TypeVar("S", bound=_Schema)


class Logprobs(_Schema):
    """OpenAI's legacy log-probabilities, as parallel lists.

    Each token's text, its log-probability in nats, the top log-probabilities in its place, and the offset of its text
    in the answer's (with `echo`, in prompt and answer).
    """

    tokens: _List[str] = Field(default_factory=list)
    token_logprobs: _List[_Nats | None] = Field(default_factory=list)
    top_logprobs: _List[dict[str, _Nats] | None] | None = None
    text_offset: _List[int] | None = None


class TokenLogprob(_Schema):
    """An entry of vLLM's `prompt_logprobs`."""

    logprob: _Nats


class Choice(_Schema):
    """One choice of a completion.

    Three fields are vLLM's: `token_ids`, the drawn tokens; `stop_reason`, what ended the answer if it was not the
    model's EOS; `prompt_logprobs`, per prompt token the log-probability of (at least) that token, by its id.
    """

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: _List[int] | None = None
    prompt_token_ids: _List[int] | None = None
    prompt_logprobs: _List[dict[str, TokenLogprob] | None] | None = None
    logprobs: Logprobs | None = None

    @property
    def token_count(self) -> int | None:
        """The number of its tokens, as far as they are listed; None where it has text and no list of tokens."""
        listed = self.token_ids or (self.logprobs.tokens if self.logprobs else [])
        return len(listed) if listed or not self.text else None


class TokenCounts(_Schema):
    """The field `usage`. OpenAI leaves `completion_tokens` out where there are none, others always."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count | None = None


class Completion(_Schema):
    """A response of `/completions`."""

    choices: _List[Choice] = Field(min_length=1)
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


class CompletionEvent(_Schema):
    """An event of a streamed response. Its choices hold what is new in each; the last event may have none."""

    choices: _List[Choice]
    usage: TokenCounts | None = None


_FIELDS = {name for schema in _Schema.__subclasses__() for name in schema.model_fields}


def read_completion(answer: Mapping[str, Any], provider_name: str) -> Completion:
    """Validates a response. Raises UpstreamError, which names the invalid field and never its value."""
    return _validate(Completion, answer, provider_name)


def read_event(event: Mapping[str, Any], provider_name: str) -> CompletionEvent:
    """Validates an event of a streamed response, as `read_completion` does."""
    return _validate(CompletionEvent, event, provider_name)


def _validate(schema: type[S], answer: Mapping[str, Any], provider_name: str) -> S:
    try:
        return schema.model_validate(answer)
    except ValidationError as error:
        loc = error.errors(include_input=False)[0]["loc"]
        field = ".".join(str(part) for part in loc if isinstance(part, int) or part in _FIELDS)
        raise UpstreamError(
            f"The provider of `{provider_name}` sent a completion whose `{field}` is invalid."
        ) from None


def nats(value: float) -> float:
    """A log-probability between `MIN_LOGPROB` and 0."""
    return min(max(value, MIN_LOGPROB), 0.0)
