"""Chat messages: their schema in a request, and their conversion for chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import JsonObject, NonEmptyText, StrictModel, Text, check_nesting, drop_neutral_values
from server.api.schemas.tools import Tool
from w2s_core.types import ChatPrompt


class TextPart(StrictModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


def _content_tag(value: Any) -> str:
    return "parts" if isinstance(value, list) else "string"


Content = Annotated[
    Annotated[Text, Tag("string")] | Annotated[list[TextPart], Field(min_length=1), Tag("parts")],
    Discriminator(_content_tag),
]


def _check_json_object(text: str) -> str:
    """Rejects text that is not a JSON object. Empty text stands for no arguments."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise PydanticCustomError("json_object", "must be a string that contains a JSON object")
    check_nesting(value)
    return text


class MessageFunctionCall(StrictModel):
    """The name and the arguments of a tool call; `arguments` is a JSON object as text."""

    name: NonEmptyText
    arguments: Annotated[Text, AfterValidator(_check_json_object)]


class MessageToolCall(StrictModel):
    """A tool call of an earlier answer."""

    id: Text
    type: Literal["function"] = "function"
    function: MessageFunctionCall

    def for_template(self) -> dict[str, Any]:
        """The call for a chat template, which writes the arguments as JSON itself and so gets them parsed."""
        arguments = json.loads(self.function.arguments or "{}")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class Message(StrictModel):
    """A message of the conversation. An answer may be sent back as the server sent it, with its empty fields."""

    neutral_values: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "refusal": (None,),
        "annotations": (None, []),
        "audio": (None,),
        "function_call": (None,),
        "tool_calls": (None, []),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: list[MessageToolCall] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_values(cls, message: Any) -> Any:
        return drop_neutral_values(message, cls.neutral_values)

    @property
    def problem(self) -> tuple[str, str] | None:
        """The name of a field at fault and the message about it; None if the message is valid."""
        if self.tool_calls and self.role != "assistant":
            return "tool_calls", "only allowed in messages with role `assistant`"
        if self.content is None and not self.tool_calls:
            return "content", "Field required"
        return None

    def for_template(self) -> dict[str, Any]:
        """The message for a chat template.

        The role `developer` becomes `system`, its older name, which templates know. Text parts are joined by newlines,
        as in vLLM.
        """
        parts = self.content if isinstance(self.content, list) else []
        message = {
            "role": "system" if self.role == "developer" else self.role,
            "content": "\n".join(part.text for part in parts) if parts else self.content,
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": [call.for_template() for call in self.tool_calls] if self.tool_calls else None,
        }
        return {key: value for key, value in message.items() if value is not None}


class Conversation(StrictModel):
    """The request fields that make up a chat prompt, shared by `/v1/chat/completions` and `/tokenize`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    add_generation_prompt: Annotated[
        bool | None,
        Field(
            description="Begin the assistant's turn after the messages. Default: true, unless "
            "`continue_final_message` is true."
        ),
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Field(description="Continue the last message instead of a new turn; whitespace at its end is kept."),
    ] = None
    chat_template_kwargs: Annotated[
        JsonObject | None, Field(description="Variables for the chat template, by name.")
    ] = None

    tools: Annotated[
        list[Tool] | None,
        Field(description="The functions that the model may call; the chat template describes them to the model."),
    ] = None

    @model_validator(mode="after")
    def _check_messages(self) -> Self:
        for number, message in enumerate(self.messages):
            if message.problem:
                field, problem = message.problem
                raise PydanticCustomError("message", problem, {"param": f"messages.{number}.{field}"})
        return self

    @model_validator(mode="after")
    def _continue_excludes_generation_prompt(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise PydanticCustomError(
                "turn", "cannot be true together with `add_generation_prompt`", {"param": "continue_final_message"}
            )
        return self

    def chat_prompt(self, tools: Sequence[Tool], *, special_tokens: bool) -> ChatPrompt:
        """The conversation as the engine's chat prompt, with the tools that the template describes."""
        continues = bool(self.continue_final_message)
        return ChatPrompt(
            tuple(message.for_template() for message in self.messages),
            special_tokens=special_tokens,
            opens_answer=self.add_generation_prompt is not False and not continues,
            continues=continues,
            tools=tuple(tool.for_template() for tool in tools),
            template_variables=self.chat_template_kwargs or {},
        )
