"""`POST /v1/chat/completions`: the request, its answer, and the chunks of its stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.base import GenerationBody
from server.api.schemas.fields import INT32_MAX
from server.api.schemas.guidance import effective_guidance
from server.api.schemas.logprobs import Alternatives, ChatLogprobs, PromptLogprobs
from server.api.schemas.messages import Conversation
from server.api.schemas.responses import Answer, AnswerChoice, Sent
from server.api.schemas.tools import NamedChoice, Tool, ToolCall, ToolCallDelta, ToolChoice
from w2s_core.types import FinishReason, GenerationRequest, Guidance

ChatFinishReason: TypeAlias = FinishReason | Literal["tool_calls"]


class ChatBody(Conversation, GenerationBody):
    """A conversation. Without a limit the answer may take what fits the context."""

    asks_nothing: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **GenerationBody.asks_nothing,
        "tools": (None, []),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "audio": (None,),
        "modalities": (None, ["text"]),
        "prediction": (None,),
        "web_search_options": (None,),
    }

    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    logprobs: Annotated[bool | None, Field(description="Log-probabilities of the answer's tokens.")] = None
    tool_choice: Annotated[
        ToolChoice | None, Field(description="By default auto: the model calls tools as it likes.")
    ] = None
    top_logprobs: Annotated[Alternatives | None, Field(description="So many alternatives at each place.")] = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "only allowed when `logprobs` is true", {"param": "top_logprobs"})
        return self

    @model_validator(mode="after")
    def _choice_is_among_the_tools(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise PydanticCustomError("tools", "names a function again", {"param": f"tools.{number}.function.name"})
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            raise PydanticCustomError("tool_choice", "names none of the tools", {"param": "tool_choice.function.name"})
        if self.tool_choice == "required" and not names:
            raise PydanticCustomError("tool_choice", "needs `tools`", {"param": "tool_choice"})
        return self

    @property
    def offered(self) -> list[Tool]:
        """The tools that the answer may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def to_request(self, default: Guidance | None) -> GenerationRequest:
        """`default` is the served model's guidance. Raises RequestError."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return GenerationRequest(
            model=self.model,
            prompts=(self.chat_prompt(self.offered, special_tokens=bool(self.add_special_tokens)),),
            sampling=self.sampling(limit),
            guidance=effective_guidance(self.guidance, default, self.choices_per_prompt),
            n=self.choices_per_prompt,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            score_prefix=self.guidance.prompt if self.guidance else None,
            **self.details.asked,
        )


class AssistantMessage(Sent):
    """`content` is null where the answer is nothing but calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(AnswerChoice):
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason
    token_ids: list[int] | None = None


class ChatCompletion(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class Delta(Sent):
    """The first of a choice has the role, the last has nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(AnswerChoice):
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | None = None


class ChatChunk(Answer):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None
