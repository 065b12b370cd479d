"""Tools that a request offers, and calls of them in answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from server.api.schemas.fields import JsonObject, Strict, Text
from server.api.schemas.responses import Sent

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    """`parameters` is the JSON schema of the arguments. `strict` changes nothing: required and named calls always
    follow it."""

    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: every one expects parameters."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": {**function, "parameters": parameters}}


class NamedFunction(Strict):
    name: FunctionName


class NamedChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


def _choice_kind(value: Any) -> str:
    return "named" if isinstance(value, dict) else "mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")] | Annotated[NamedChoice, Tag("named")],
    Discriminator(_choice_kind),
]


class FunctionCall(Sent):
    """`arguments` is JSON, as text; in a stream a part of it."""

    name: str | None = None
    arguments: str


class ToolCall(Sent):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ToolCallDelta(Sent):
    """The first of a call has its id and its function's name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall
