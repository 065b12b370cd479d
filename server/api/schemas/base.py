"""The request fields that both generating endpoints share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NoReturn, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import JsonObject, StrictModel, raise_at
from server.api.schemas.guidance import GuidanceOptions
from server.api.schemas.logprobs import OutputOptions, TopLogprobs
from server.api.schemas.sampling import SamplingExtras
from server.api.schemas.structured import StructuredFields
from server.api.schemas.unsupported import UNSUPPORTED_FIELDS
from w2s_core.guidance import INT32_MAX
from w2s_core.types import SamplingParams

MAX_CHOICES = 128  # OpenAI's limit; the engine limits rows per request more tightly


class StreamOptions(StrictModel):
    """Options of a streamed response."""

    include_usage: Annotated[bool, Field(description="Send a last chunk with the usage and no choices.")] = False
    continuous_usage_stats: Annotated[
        bool, Field(description="With `include_usage`: send the usage so far with every chunk (a vLLM extension).")
    ] = False
    include_obfuscation: Annotated[bool, Field(description="Accepted and ignored: chunks are never padded.")] = False


class GenerationBody(SamplingExtras, StructuredFields, ABC):
    """The fields of both generating endpoints."""

    neutral_values: ClassVar[Mapping[str, tuple[object, ...]]] = {
        name: (None, *field.accepted) for name, field in UNSUPPORTED_FIELDS.items()
    }

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    guidance: GuidanceOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    prompt_logprobs: Annotated[
        TopLogprobs | None,
        Field(
            description="Return the log-probabilities of the prompt's tokens, with this many alternatives per token "
            "(a vLLM extension)."
        ),
    ] = None
    return_token_ids: Annotated[
        bool | None, Field(description="Return the token ids of the prompt and the answer (a vLLM extension).")
    ] = None

    # Accepted and ignored, because they cannot change the answer.
    user: str | None = None
    metadata: JsonObject | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None

    @classmethod
    def reject_name(cls, name: str, value: Any) -> NoReturn:
        if (field := UNSUPPORTED_FIELDS.get(name)) is not None:
            message = field.message(name)
            raise_at(name, value, PydanticCustomError("unsupported_field", "{message}", {"message": message}))
        super().reject_name(name, value)

    @classmethod
    def suggestions(cls) -> Mapping[str, str]:
        """Keys of `guidance` as well, which are easily put into the body itself."""
        keys = {name: f"guidance.{name}" for name in GuidanceOptions.field_names()}
        return {**keys, **super().suggestions()}

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "stream_options", "only allowed when `stream` is true", {"param": "stream_options"}
            )
        return self

    @model_validator(mode="after")
    def _streamed_trace_needs_stream(self) -> Self:
        if self.guidance is not None and self.guidance.trace == "stream" and not self.stream:
            raise PydanticCustomError(
                "trace", 'may be "stream" only when `stream` is true', {"param": "guidance.trace"}
            )
        return self

    @model_validator(mode="after")
    def _prompt_logprobs_need_no_stream(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise PydanticCustomError("stream", "not available when `stream` is true", {"param": "prompt_logprobs"})
        return self

    @property
    def output_options(self) -> OutputOptions:
        """What the response contains besides the text."""
        token_ids = bool(self.return_token_ids)
        return OutputOptions(self.logprob_count, self.prompt_logprobs, echo=self.echo_prompt, token_ids=token_ids)

    @property
    @abstractmethod
    def logprob_count(self) -> int | None:
        """The number of alternatives per token of the answer; None if no log-probabilities are requested."""

    @property
    def echo_prompt(self) -> bool:
        """Whether the prompt precedes the answer in its text."""
        return False

    @property
    def choices_per_prompt(self) -> int:
        """`n`, 1 by default."""
        return self.n or 1

    def to_sampling_params(self, default: SamplingParams) -> SamplingParams:
        """The engine's sampling parameters: the served model's `default`, and over it what the request gives.

        `default.max_tokens` is left out: it is no limit of the request's own (`GenerationRequest.default_max_tokens`).
        """
        own = {"max_tokens": None, **self.given_sampling(), **self.sampling_extras()}
        if self.max_completion_tokens is not None:
            own["max_tokens"] = self.max_completion_tokens
        return replace(default, logprobs=self.logprob_count, grammar=self.grammar, **own)
