"""Chat messages: records of what this server or another one said, and their conversion for chat templates.

Every field is accepted that an OpenAI-compatible server, or an official client's helper, puts into a message. What a
chat template can use is kept, the rest is dropped.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError, from_json

from server.api.schemas.content import Content, LooseText, content_reasoning, content_text
from server.api.schemas.fields import NonEmptyText, RecordModel, Text, check_encodable, check_nesting


def _parse_arguments(arguments: Any) -> dict[str, Any] | str:
    """The arguments of a call as an object.

    Those that `max_tokens` cut off are read as far as they go. What never was an object stays the text that it is.
    """
    if not isinstance(arguments, str | dict | None):
        raise PydanticCustomError("arguments", "must be a string that contains a JSON object")
    if isinstance(arguments, str):
        text = check_encodable(arguments)
        try:
            arguments = from_json(text or "{}", allow_partial="trailing-strings")
        except ValueError:
            return text
        if not isinstance(arguments, dict):
            return text
    found: dict[str, Any] = check_nesting(arguments or {})
    return found


class MessageFunctionCall(RecordModel):
    """The name and the arguments of a tool call; `arguments` is a JSON object as text."""

    name: NonEmptyText
    arguments: Annotated[Any, AfterValidator(_parse_arguments)] = None

    def for_template(self) -> dict[str, Any]:
        """The call for a chat template, which writes the arguments as JSON itself and so gets them parsed."""
        return {"name": self.name, "arguments": self.arguments or {}}


class MessageToolCall(RecordModel):
    """A tool call of an earlier answer. OpenAI's custom tools become functions with the argument `input`."""

    id: Text | None = None
    function: MessageFunctionCall

    @model_validator(mode="before")
    @classmethod
    def _read_custom_call(cls, call: Any) -> Any:
        custom = call.get("custom") if isinstance(call, dict) else None
        if not isinstance(custom, dict) or call.get("function") is not None:
            return call
        function = {"name": custom.get("name"), "arguments": json.dumps({"input": custom.get("input")})}
        return {"id": call.get("id"), "function": function}

    def for_template(self) -> dict[str, Any]:
        """The call for a chat template."""
        return {"id": self.id, "type": "function", "function": self.function.for_template()}


class Message(RecordModel):
    """A message of the conversation. `function` and `function_call` are the older names of `tool` and `tool_calls`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: MessageFunctionCall | None = None
    refusal: LooseText = None
    reasoning_content: LooseText = None
    reasoning: LooseText = None

    @property
    def calls(self) -> list[MessageToolCall]:
        """The tool calls."""
        if self.function_call is not None and not self.tool_calls:
            return [MessageToolCall(function=self.function_call)]
        return self.tool_calls or []

    @property
    def problem(self) -> tuple[str, str] | None:
        """The name of a field at fault and the message about it; None if the message is valid.

        A model can answer nothing and so can a tool, but not a person.
        """
        if self.tool_calls and self.role != "assistant":
            return "tool_calls", "only allowed in messages with role `assistant`"
        if self.content is None and self.role in ("system", "developer", "user"):
            return "content", "Field required"
        return None

    def for_template(self) -> dict[str, Any]:
        """The message for a chat template.

        The role `developer` becomes `system`, its older name, which templates know. Reasoning is given under both of
        its names, as in vLLM. A message with tool calls and no content has none, as templates expect.
        """
        text = content_text(self.content)
        if not text and self.refusal:
            text = self.refusal
        reasoning = self.reasoning_content or self.reasoning or content_reasoning(self.content)
        calls = [call.for_template() for call in self.calls] if self.role == "assistant" else []
        message = {
            "role": {"developer": "system", "function": "tool"}.get(self.role, self.role),
            "content": text if text is not None or calls else "",
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": calls or None,
            "reasoning_content": reasoning,
            "reasoning": reasoning,
        }
        return {key: value for key, value in message.items() if value is not None}
