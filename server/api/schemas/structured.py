"""What an answer must be: OpenAI's `response_format`, vLLM's `guided_*` and `structured_outputs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import JsonObject, Strict, Text
from w2s_core.types import Grammar

Choices = Annotated[list[Text], Field(min_length=1)]


def _schema_kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "object"


JsonSchema = Annotated[Annotated[Text, Tag("text")] | Annotated[JsonObject, Tag("object")], Discriminator(_schema_kind)]


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class NamedSchema(Strict):
    """`name`, `description` and `strict` change nothing: a schema is always followed."""

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    json_schema: Annotated[JsonObject | None, Field(alias="schema", description="Without one: any JSON object.")] = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Strict):
    """vLLM's: exactly one of these."""

    json_: Annotated[JsonSchema | None, Field(alias="json", description="A JSON schema, as an object or as text.")] = (
        None
    )
    regex: Annotated[Text | None, Field(description="What the whole answer matches.")] = None
    choice: Annotated[Choices | None, Field(description="The answer is one of these.")] = None
    grammar: Annotated[Text | None, Field(description="Lark or GBNF.")] = None
    json_object: Annotated[bool | None, Field(description="Any JSON object.")] = None

    def grammars(self, field: str) -> Iterator[Grammar]:
        """Those that are given."""
        if self.json_ is not None:
            yield _of_schema(self.json_, f"{field}.json")
        if self.regex is not None:
            yield Grammar("regex", self.regex, f"{field}.regex")
        if self.choice is not None:
            yield Grammar("choice", json.dumps(self.choice), f"{field}.choice")
        if self.grammar is not None:
            yield Grammar("grammar", self.grammar, f"{field}.grammar")
        if self.json_object:
            yield Grammar("json_object", "", f"{field}.json_object")


class StructuredFields(Strict):
    """At most one of these, in one request. Null means "not given"."""

    response_format: Annotated[ResponseFormat | None, Field(description="Text, or JSON that follows a schema.")] = None
    structured_outputs: Annotated[StructuredOutputs | None, Field(description="vLLM's.")] = None
    guided_json: Annotated[JsonSchema | None, Field(description="A JSON schema, as an object or as text.")] = None
    guided_regex: Annotated[Text | None, Field(description="What the whole answer matches.")] = None
    guided_choice: Annotated[Choices | None, Field(description="The answer is one of these.")] = None
    guided_grammar: Annotated[Text | None, Field(description="Lark or GBNF.")] = None

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        fields = [grammar.field for grammar in self._grammars()]
        if len(fields) > 1:
            message = f"not together with `{fields[0]}`: an answer follows one grammar"
            raise PydanticCustomError("grammars", "{message}", {"message": message, "param": fields[1]})
        if self.structured_outputs is not None and not fields:
            raise PydanticCustomError("grammars", "names no grammar", {"param": "structured_outputs"})
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must be, if anything."""
        return next(self._grammars(), None)

    def _grammars(self) -> Iterator[Grammar]:
        match self.response_format:
            case JsonObjectFormat():
                yield Grammar("json_object", "", "response_format")
            case JsonSchemaFormat(json_schema=named) if named.json_schema is None:
                yield Grammar("json_object", "", "response_format")
            case JsonSchemaFormat(json_schema=named):
                yield _of_schema(named.json_schema or {}, "response_format.json_schema.schema")
            case _:
                pass
        if self.structured_outputs is not None:
            yield from self.structured_outputs.grammars("structured_outputs")
        if self.guided_json is not None:
            yield _of_schema(self.guided_json, "guided_json")
        if self.guided_regex is not None:
            yield Grammar("regex", self.guided_regex, "guided_regex")
        if self.guided_choice is not None:
            yield Grammar("choice", json.dumps(self.guided_choice), "guided_choice")
        if self.guided_grammar is not None:
            yield Grammar("grammar", self.guided_grammar, "guided_grammar")


def _of_schema(schema: str | dict[str, Any], field: str) -> Grammar:
    return Grammar("json", schema if isinstance(schema, str) else json.dumps(schema), field)
