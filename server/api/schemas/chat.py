"""Schemas of `POST /v1/chat/completions`: the request, the response, and the chunks of a streamed response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.base import GenerationBody
from server.api.schemas.conversation import Conversation
from server.api.schemas.guidance import merge_guidance
from server.api.schemas.logprobs import ChatLogprobs, PromptLogprobs, TopLogprobs
from server.api.schemas.responses import BaseChoice, GuidanceSummary, ResponseBody, ResponseModel
from server.api.schemas.tools import NamedChoice, Tool, ToolCall, ToolCallDelta, ToolChoice
from w2s_core.types import FinishReason, GenerationRequest

if TYPE_CHECKING:
    from w2s_core.engine.planning import ServedModel

ChatFinishReason: TypeAlias = FinishReason | Literal["tool_calls"]


class ChatBody(Conversation, GenerationBody):
    """A chat request. Without a token limit the answer may use all of the context that the prompt leaves."""

    neutral_values: ClassVar[Mapping[str, tuple[object, ...]]] = {**GenerationBody.neutral_values, "tools": ([],)}

    logprobs: Annotated[bool | None, Field(description="Return the log-probabilities of the answer's tokens.")] = None
    tool_choice: Annotated[
        ToolChoice | None,
        Field(
            description="`auto` (the default) lets the model decide, `none` hides the tools from it, `required` and a "
            "named function make it call one."
        ),
    ] = None
    top_logprobs: Annotated[
        TopLogprobs | None, Field(description="The number of alternatives to return per token; needs `logprobs`.")
    ] = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "only allowed when `logprobs` is true", {"param": "top_logprobs"})
        return self

    @model_validator(mode="after")
    def _check_tool_names(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise PydanticCustomError(
                    "tools", "repeats the name of another function", {"param": f"tools.{number}.function.name"}
                )
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            raise PydanticCustomError(
                "tool_choice", "is not the name of a function in `tools`", {"param": "tool_choice.function.name"}
            )
        if self.tool_choice in ("auto", "required") and not names:
            raise PydanticCustomError("tool_choice", "only allowed with `tools`", {"param": "tool_choice"})
        return self

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the answer may call; none if `tool_choice` is `none`."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def to_request(self, served: ServedModel) -> GenerationRequest:
        """The engine's request, with what `served` says where the request says nothing. Raises RequestError."""
        return GenerationRequest(
            model=self.model,
            prompts=(self.chat_prompt(self.offered_tools, special_tokens=bool(self.add_special_tokens)),),
            sampling=self.to_sampling_params(served.sampling),
            guidance=merge_guidance(self.guidance, served.guidance),
            default_max_tokens=served.sampling.max_tokens,
            n=self.choices_per_prompt,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            score_prefix=self.guidance.prompt if self.guidance else None,
            **self.output_options.request_fields(),
        )


class AssistantMessage(ResponseModel):
    """The message of a chat response. `content` is null if the answer consists of tool calls only.

    `reasoning_content` is there if the model is a reasoning model, and null if it has not thought.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseChoice):
    """A choice of a chat response."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason
    token_ids: list[int] | None = None


class ChatCompletion(ResponseBody):
    """A chat response."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    guidance: GuidanceSummary | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class Delta(ResponseModel):
    """What a chunk adds to a message. The first delta of a choice has the role; the last one is empty."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseChoice):
    """A choice of a chunk. `finish_reason` is null in all but the choice's last chunk."""

    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | None = None


class ChatChunk(ResponseBody):
    """A chunk of a streamed chat response."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None
