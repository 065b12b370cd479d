"""Structured output: OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*` fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import JsonObject, StrictModel, Text
from server.api.schemas.strict import close_objects
from w2s_core.types import Grammar

Choices = Annotated[list[Text], Field(min_length=1)]


def _schema_tag(value: Any) -> str:
    return "text" if isinstance(value, str) else "object"


JsonSchema = Annotated[Annotated[Text, Tag("text")] | Annotated[JsonObject, Tag("object")], Discriminator(_schema_tag)]


class TextFormat(StrictModel):
    """Plain text, the default."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(StrictModel):
    """A JSON schema with a name. It is always enforced; `name` and `description` have no effect."""

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    json_schema: Annotated[
        JsonObject | None, Field(alias="schema", description="The schema. Default: any JSON object.")
    ] = None
    strict: Annotated[
        bool,
        Field(
            description="Allow no properties that the schema does not describe, and require all if it requires none."
        ),
    ] = False

    @property
    def enforced_schema(self) -> dict[str, Any]:
        """The schema that the answer follows."""
        schema = self.json_schema or {}
        return close_objects(schema) if self.strict else schema


class JsonSchemaFormat(StrictModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


def _format_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if kind in ("text", "json_object", "json_schema") else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[JsonObjectFormat, Tag("json_object")]
    | Annotated[JsonSchemaFormat, Tag("json_schema")],
    Discriminator(
        _format_tag,
        custom_error_type="response_format",
        custom_error_message="must be an object whose `type` is `text`, `json_object` or `json_schema`",
    ),
]


class StructuredOutputs(StrictModel):
    """vLLM's field for structured output. Exactly one of the keys must be given."""

    json_: Annotated[JsonSchema | None, Field(alias="json", description="A JSON schema, as an object or as text.")] = (
        None
    )
    regex: Annotated[Text | None, Field(description="A regular expression that the whole answer matches.")] = None
    choice: Annotated[Choices | None, Field(description="The answer is one of these strings.")] = None
    grammar: Annotated[Text | None, Field(description="A grammar that the answer follows, in Lark or GBNF.")] = None
    json_object: Annotated[bool | None, Field(description="True: the answer is any JSON object.")] = None

    def grammars(self, field: str) -> Iterator[Grammar]:
        """The grammars that are given. `field` is the path of this object in the request."""
        if self.json_ is not None:
            yield _schema_grammar(self.json_, f"{field}.json")
        if self.regex is not None:
            yield Grammar("regex", self.regex, f"{field}.regex")
        if self.choice is not None:
            yield Grammar("choice", json.dumps(self.choice), f"{field}.choice")
        if self.grammar is not None:
            yield Grammar("grammar", self.grammar, f"{field}.grammar")
        if self.json_object:
            yield Grammar("json_object", "", f"{field}.json_object")


class StructuredFields(StrictModel):
    """The request fields for structured output. A request may use at most one of them. Null means "not given"."""

    response_format: Annotated[
        ResponseFormat | None, Field(description="Plain text, any JSON object, or JSON that follows a schema.")
    ] = None
    structured_outputs: Annotated[
        StructuredOutputs | None, Field(description="vLLM's field for structured output.")
    ] = None
    guided_json: Annotated[JsonSchema | None, Field(description="A JSON schema, as an object or as text.")] = None
    guided_regex: Annotated[Text | None, Field(description="A regular expression that the whole answer matches.")] = (
        None
    )
    guided_choice: Annotated[Choices | None, Field(description="The answer is one of these strings.")] = None
    guided_grammar: Annotated[Text | None, Field(description="A grammar that the answer follows, in Lark or GBNF.")] = (
        None
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        fields = [grammar.field for grammar in self._grammars()]
        if len(fields) > 1:
            message = f"cannot be combined with `{fields[0]}`: an answer follows one grammar"
            raise PydanticCustomError("grammars", "{message}", {"message": message, "param": fields[1]})
        if self.structured_outputs is not None and not fields:
            raise PydanticCustomError(
                "grammars",
                "must contain one of `json`, `regex`, `choice`, `grammar` and `json_object`",
                {"param": "structured_outputs"},
            )
        return self

    @property
    def grammar(self) -> Grammar | None:
        """The grammar that the answer must follow, if any."""
        return next(self._grammars(), None)

    def _grammars(self) -> Iterator[Grammar]:
        match self.response_format:
            case JsonObjectFormat():
                yield Grammar("json_object", "", "response_format")
            case JsonSchemaFormat(json_schema=named) if named.json_schema is None:
                yield Grammar("json_object", "", "response_format")
            case JsonSchemaFormat(json_schema=named):
                yield _schema_grammar(named.enforced_schema, "response_format.json_schema.schema")
            case _:
                pass
        if self.structured_outputs is not None:
            yield from self.structured_outputs.grammars("structured_outputs")
        if self.guided_json is not None:
            yield _schema_grammar(self.guided_json, "guided_json")
        if self.guided_regex is not None:
            yield Grammar("regex", self.guided_regex, "guided_regex")
        if self.guided_choice is not None:
            yield Grammar("choice", json.dumps(self.guided_choice), "guided_choice")
        if self.guided_grammar is not None:
            yield Grammar("grammar", self.guided_grammar, "guided_grammar")


def _schema_grammar(schema: str | dict[str, Any], field: str) -> Grammar:
    return Grammar("json", schema if isinstance(schema, str) else json.dumps(schema), field)
