"""Tools: the functions that a request offers, and the tool calls in responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from server.api.schemas.fields import JsonObject, StrictModel, Text
from server.api.schemas.responses import ResponseModel
from server.api.schemas.strict import close_objects

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]

CacheControl = Annotated[
    JsonObject | None, Field(description="Accepted and ignored: prompts are cached without being asked (Anthropic's).")
]


class Function(StrictModel):
    """A function that the model may call. `parameters` is the JSON schema of its arguments.

    Calls that `tool_choice` requires follow the schema; with `strict` it is closed first.
    """

    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: Annotated[
        bool,
        Field(description="Allow no arguments that the schema does not describe, and require all if it requires none."),
    ] = False
    cache_control: CacheControl = None


class Tool(StrictModel):
    """A tool that the request offers."""

    type: Literal["function"]
    function: Function
    cache_control: CacheControl = None

    def for_template(self) -> dict[str, Any]:
        """The tool for a chat template. Templates expect `parameters`, so a missing schema becomes an empty one."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": {**function, "parameters": parameters}}

    def for_grammar(self) -> dict[str, Any]:
        """The tool for the grammar of a call, with the schema that its arguments follow."""
        tool = self.for_template()
        if self.function.strict:
            tool["function"]["parameters"] = close_objects(tool["function"]["parameters"])
        return tool


class NamedFunction(StrictModel):
    """The name of a function in `tools`."""

    name: FunctionName


class NamedChoice(StrictModel):
    """A `tool_choice` that makes the model call one function."""

    type: Literal["function"]
    function: NamedFunction


def _choice_tag(value: Any) -> str:
    return "named" if isinstance(value, dict) else "mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")] | Annotated[NamedChoice, Tag("named")],
    Discriminator(_choice_tag),
]


class FunctionCall(ResponseModel):
    """The name and arguments of a call. `arguments` is JSON as text, in a stream a part of it."""

    name: str | None = None
    arguments: str


class ToolCall(ResponseModel):
    """A tool call in a complete response."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ToolCallDelta(ResponseModel):
    """A part of a tool call in a stream. The first part of a call has its id and its function's name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall
