"""What both kinds of generation share: strict parsing, common fields, and fields that ask for nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import INT32_MAX, JsonObject, NonEmpty, Strict, drop_neutral
from server.api.schemas.guidance import GuidanceOptions
from server.api.schemas.logprobs import Alternatives, Details
from server.api.schemas.sampling import SamplingExtras
from server.api.schemas.structured import StructuredFields
from w2s_core.types import SamplingParams

INT64_MAX = 2**63 - 1
MAX_CHOICES = 128  # as OpenAI; the server's caps on rows are tighter and belong to the engine


StopList = Annotated[list[NonEmpty], Field(max_length=4)]


def _stop_kind(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "string"


# Told apart by hand, so that a wrong value gets one message and not one per member of the union.
Stop = Annotated[Annotated[NonEmpty, Tag("string")] | Annotated[StopList, Tag("list")], Discriminator(_stop_kind)]


class StreamOptions(Strict):
    """`include_usage`: one more chunk with the usage; `continuous_usage_stats` (vLLM's): usage so far in each."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationBody(SamplingExtras, StructuredFields, ABC):
    """Fields of both endpoints. Null means "not given", as at OpenAI.

    `asks_nothing` lists fields that are not honoured, each with the values that change nothing; clients send those
    as a matter of course. Any other value is refused like an unknown field. To honour a field: declare it, and
    delete it there.
    """

    asks_nothing: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    model: str
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    guidance: GuidanceOptions | None = None
    prompt_logprobs: Annotated[
        Alternatives | None,
        Field(description="The prompt's own log-probabilities, with so many alternatives at each place (vLLM's)."),
    ] = None
    return_token_ids: Annotated[
        bool | None, Field(description="Return the token ids of prompt and answer (vLLM's).")
    ] = None

    # Cannot change the answer: accepted and not used.
    user: str | None = None
    metadata: JsonObject | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_nothing(cls, body: Any) -> Any:
        return drop_neutral(body, cls.asks_nothing)

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "stream_options", "only allowed when `stream` is true", {"param": "stream_options"}
            )
        return self

    @model_validator(mode="after")
    def _prompt_logprobs_are_not_streamed(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise PydanticCustomError("stream", "not available when `stream` is true", {"param": "prompt_logprobs"})
        return self

    @property
    def details(self) -> Details:
        """What is wanted beside the text."""
        return Details(self.alternatives, self.prompt_logprobs, echo=self.echoes, token_ids=bool(self.return_token_ids))

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """Per token of the answer; None = no log-probabilities."""

    @property
    def echoes(self) -> bool:
        return False

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    def sampling(self, max_tokens: int | None) -> SamplingParams:
        """The engine's terms: a null is the default, a `top_k` of -1 is 0 (off)."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            stop=stop,
            seed=self.seed,
            logprobs=self.alternatives,
            grammar=self.grammar,
            **self.sampling_extras(),
        )
