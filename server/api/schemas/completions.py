"""`POST /v1/completions`: the request, and both of its answers (OpenAI gives whole and streamed the same shape)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.base import MAX_CHOICES, GenerationBody
from server.api.schemas.fields import INT32_MAX, Text, TokenId
from server.api.schemas.guidance import effective_guidance
from server.api.schemas.logprobs import Alternatives, CompletionLogprobs, PromptLogprobs
from server.api.schemas.responses import Answer, AnswerChoice
from w2s_core.types import FinishReason, GenerationRequest, Guidance, Prompt, TextPrompt, TokenPrompt

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def _prompt_kind(value: Any) -> str:
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
    Discriminator(_prompt_kind),
]


class CompletionBody(GenerationBody):
    """A raw prompt, or several: choices are then indexed `i + prompt_index * n`."""

    asks_nothing: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **GenerationBody.asks_nothing,
        "suffix": (None,),
    }

    prompt: PromptField
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    logprobs: Annotated[
        Alternatives | None,
        Field(description="Log-probabilities of the answer's tokens, with so many alternatives at each place."),
    ] = None
    echo: Annotated[bool | None, Field(description="Put the prompt before the answer; then max_tokens may be 0.")] = (
        None
    )

    @model_validator(mode="after")
    def _no_tokens_need_an_echo(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise PydanticCustomError("max_tokens", "must be at least 1 unless `echo` is true", {"param": "max_tokens"})
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    def to_request(self, default: Guidance | None) -> GenerationRequest:
        """`default` is the served model's guidance. Raises RequestError."""
        return GenerationRequest(
            model=self.model,
            prompts=self._prompts(),
            sampling=self.sampling(DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens),
            guidance=effective_guidance(self.guidance, default, self.choices_per_prompt),
            n=self.choices_per_prompt,
            best_of=self.best_of,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            score_prefix=self.guidance.prompt if self.guidance else None,
            **self.details.asked,
        )

    def _prompts(self) -> tuple[Prompt, ...]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return (self._one(self.prompt),)
        return tuple(self._one(prompt) for prompt in self.prompt)

    def _one(self, prompt: Any) -> Prompt:
        if isinstance(prompt, str):
            return TextPrompt(prompt, special_tokens=self.add_special_tokens is not False)
        return TokenPrompt(tuple(prompt))


class CompletionChoice(AnswerChoice):
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Completion(Answer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
