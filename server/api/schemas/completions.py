"""Schemas of `POST /v1/completions`: the request, and the response, which as with OpenAI is also a chunk's format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.base import MAX_CHOICES, GenerationBody
from server.api.schemas.fields import Text, TokenId
from server.api.schemas.guidance import merge_guidance
from server.api.schemas.logprobs import CompletionLogprobs, PromptLogprobs, TopLogprobs
from server.api.schemas.responses import BaseChoice, ResponseBody
from w2s_core.guidance import INT32_MAX
from w2s_core.types import FinishReason, GenerationRequest, Prompt, TextPrompt, TokenPrompt

if TYPE_CHECKING:
    from w2s_core.engine.planning import ServedModel

DEFAULT_MAX_TOKENS = 16  # OpenAI's default


def _prompt_tag(value: Any) -> str:
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else None
    if isinstance(first, list):
        return "token lists"
    return "tokens" if isinstance(first, int) else "texts"


PromptField = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(min_length=1), Tag("texts")]
    | Annotated[list[TokenId], Field(min_length=1), Tag("tokens")]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1), Tag("token lists")],
    Discriminator(_prompt_tag),
]


class CompletionBody(GenerationBody):
    """A request to continue one or several prompts. Choice i of a prompt has index `i + prompt_index * n`."""

    prompt: PromptField
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    logprobs: Annotated[
        TopLogprobs | None,
        Field(
            description="Return the log-probabilities of the answer's tokens, with this many alternatives per token."
        ),
    ] = None
    echo: Annotated[
        bool | None, Field(description="Return the prompt in front of the answer. `max_tokens` may then be 0.")
    ] = None

    @model_validator(mode="after")
    def _zero_max_tokens_needs_echo(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise PydanticCustomError("max_tokens", "must be at least 1 unless `echo` is true", {"param": "max_tokens"})
        return self

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs

    @property
    def echo_prompt(self) -> bool:
        return bool(self.echo)

    def to_request(self, served: ServedModel) -> GenerationRequest:
        """The engine's request, with what `served` says where the request says nothing. Raises RequestError."""
        sampling = self.to_sampling_params(served.sampling)
        return GenerationRequest(
            model=self.model,
            prompts=self._prompts(),
            sampling=sampling,
            guidance=merge_guidance(
                self.guidance, served.guidance, best_of=self.best_of, only_scored=sampling.max_tokens == 0
            ),
            default_max_tokens=served.sampling.max_tokens or DEFAULT_MAX_TOKENS,
            n=self.choices_per_prompt,
            best_of=self.best_of,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            score_prefix=self.guidance.prompt if self.guidance else None,
            **self.output_options.request_fields(),
        )

    def _prompts(self) -> tuple[Prompt, ...]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return (self._to_prompt(self.prompt),)
        return tuple(self._to_prompt(prompt) for prompt in self.prompt)

    def _to_prompt(self, prompt: Any) -> Prompt:
        if isinstance(prompt, str):
            return TextPrompt(prompt, special_tokens=self.add_special_tokens is not False)
        return TokenPrompt(tuple(prompt))


class CompletionChoice(BaseChoice):
    """A choice of a completion, or of a chunk of one, where `finish_reason` is null until the last."""

    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Completion(ResponseBody):
    """A completion, or a chunk of a streamed one."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
