"""The request fields that make up a chat prompt, shared by `/v1/chat/completions` and `/tokenize`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import JsonObject, StrictModel
from server.api.schemas.messages import Message
from server.api.schemas.tools import Tool
from w2s_core.types import ChatPrompt


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

    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None,
        Field(
            description="How much to think, for chat templates that read it; `none` also sets their `enable_thinking` "
            "and `thinking` to false. `chat_template_kwargs` takes precedence."
        ),
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
            tuple(fill_in_call_ids(message.for_template() for message in self.messages)),
            special_tokens=special_tokens,
            opens_answer=self.add_generation_prompt is not False and not continues,
            continues=continues,
            tools=tuple(tool.for_template() for tool in tools),
            template_variables={**self._effort_variables, **(self.chat_template_kwargs or {})},
        )

    @property
    def _effort_variables(self) -> dict[str, Any]:
        """`reasoning_effort` under the names that chat templates know."""
        if self.reasoning_effort is None:
            return {}
        off = {"enable_thinking": False, "thinking": False} if self.reasoning_effort == "none" else {}
        return {"reasoning_effort": self.reasoning_effort, **off}


def fill_in_call_ids(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a chat template, with ids for tool calls that have none.

    A tool's message without an id answers the earliest call that no message has answered. The ids have nine letters and
    digits, as Mistral's template wants them.
    """
    filled, waiting, numbers = list(messages), list[str](), count()
    for message in filled:
        for call in message.get("tool_calls", ()):
            call["id"] = call["id"] or f"call{next(numbers):05}"
            waiting.append(call["id"])
        if message["role"] == "tool" and (message.get("tool_call_id") or waiting):
            answered = message["tool_call_id"] = message.get("tool_call_id") or waiting[0]
            if answered in waiting:
                waiting.remove(answered)
    return filled
