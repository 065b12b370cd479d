"""A conversation as clients send it, and as chat templates take it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import JsonObject, NonEmpty, Strict, Text, drop_neutral, shallow
from server.api.schemas.tools import Tool
from w2s_core.types import ChatPrompt


class TextPart(Strict):
    type: Literal["text"]
    text: Text


def _content_kind(value: Any) -> str:
    return "parts" if isinstance(value, list) else "string"


Content = Annotated[
    Annotated[Text, Tag("string")] | Annotated[list[TextPart], Field(min_length=1), Tag("parts")],
    Discriminator(_content_kind),
]


def _json_object(text: str) -> str:
    """Empty is no arguments."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PydanticCustomError("json_object", "must be a JSON object, written as a string")
    shallow(found)
    return text


class CalledFunction(Strict):
    name: NonEmpty
    arguments: Annotated[Text, AfterValidator(_json_object)]


class SentCall(Strict):
    """A call that an earlier answer made."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """Templates write the arguments as JSON themselves, so they get what they are."""
        arguments = json.loads(self.function.arguments or "{}")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class Message(Strict):
    """One turn. An answer of ours may be sent back as it came, with its empty fields."""

    asks_nothing: ClassVar[Mapping[str, tuple[object, ...]]] = {
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
    tool_calls: list[SentCall] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_nothing(cls, message: Any) -> Any:
        return drop_neutral(message, cls.asks_nothing)

    @property
    def problem(self) -> tuple[str, str] | None:
        """The field at fault and what is wrong with it."""
        if self.tool_calls and self.role != "assistant":
            return "tool_calls", "only allowed in messages of the assistant"
        if self.content is None and not self.tool_calls:
            return "content", "Field required"
        return None

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: `developer` is the newer name of `system`, which every template knows; text parts
        are joined by a newline, as vLLM does."""
        parts = self.content if isinstance(self.content, list) else []
        message = {
            "role": "system" if self.role == "developer" else self.role,
            "content": "\n".join(part.text for part in parts) if parts else self.content,
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": [call.for_template() for call in self.tool_calls] if self.tool_calls else None,
        }
        return {key: value for key, value in message.items() if value is not None}


class Conversation(Strict):
    """The fields that become a chat prompt, wherever they are sent."""

    messages: Annotated[list[Message], Field(min_length=1)]
    add_generation_prompt: Annotated[
        bool | None,
        Field(description="Open an assistant's turn behind the messages; true unless `continue_final_message` is."),
    ] = None
    continue_final_message: Annotated[
        bool | None, Field(description="The answer goes on with the last message, blanks at its end included.")
    ] = None
    chat_template_kwargs: Annotated[
        JsonObject | None, Field(description="Variables of the chat template, by name.")
    ] = None

    tools: Annotated[list[Tool] | None, Field(description="Functions, which the chat template tells the model of.")] = (
        None
    )

    @model_validator(mode="after")
    def _messages_are_whole(self) -> Self:
        for number, message in enumerate(self.messages):
            if message.problem:
                field, what = message.problem
                raise PydanticCustomError("message", what, {"param": f"messages.{number}.{field}"})
        return self

    @model_validator(mode="after")
    def _goes_on_or_begins(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise PydanticCustomError(
                "turn", "cannot be true together with `add_generation_prompt`", {"param": "continue_final_message"}
            )
        return self

    def chat_prompt(self, tools: Sequence[Tool], *, special_tokens: bool) -> ChatPrompt:
        continues = bool(self.continue_final_message)
        return ChatPrompt(
            tuple(message.for_template() for message in self.messages),
            special_tokens=special_tokens,
            opens_answer=self.add_generation_prompt is not False and not continues,
            continues=continues,
            tools=tuple(tool.for_template() for tool in tools),
            template_variables=self.chat_template_kwargs or {},
        )
