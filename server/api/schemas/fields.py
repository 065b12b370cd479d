"""Field types and base classes that several schemas share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Set
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from w2s_core.guidance import INT32_MAX

MAX_NESTING = 100  # levels of objects and lists; code that recurses over them could go three times as deep
_MAX_NAME_LENGTH = 64  # characters of an unknown field's name for which a similar one is looked for


def check_encodable(text: str) -> str:
    """Returns `text`; rejects half a surrogate pair, which JSON can escape and no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "contains half of a surrogate pair, which is not valid text") from None
    return text


def check_nesting(value: Any) -> Any:
    """Returns `value`; rejects one that is nested deeper than `MAX_NESTING`."""
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _children(outer)]:
        depth += 1
        if depth > MAX_NESTING:
            raise PydanticCustomError("nesting", f"is nested deeper than {MAX_NESTING} levels")
    return value


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


JsonObject = Annotated[dict[str, Any], AfterValidator(check_nesting)]
Text = Annotated[str, AfterValidator(check_encodable)]
NonEmptyText = Annotated[Text, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


class NullableModel(BaseModel):
    """Base of all schemas of what clients send: in every field, at every depth, null means "not given".

    So a field needs no `| None` of its own, and its JSON schema allows null. What the client may fill with anything,
    such as a JSON schema, keeps its nulls.
    """

    neutral_values: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _keep_given_fields(cls, body: Any) -> Any:
        """Drops nulls, and `neutral_values`: by field, values that change nothing. Types must match: false is not 0."""
        if not isinstance(body, dict):
            return body
        names = cls.field_names()
        given = {
            name: value
            for name, value in body.items()
            if not (value is None and name in names) and not _among(value, cls.neutral_values.get(name, ()))
        }
        return cls.check_names(given)

    @classmethod
    def field_names(cls) -> Set[str]:
        """The names of the fields in a request."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def check_names(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Returns `body`, whose nulls are dropped; may reject its names."""
        return body

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        properties = described.get("properties", {})
        for name in properties.keys() - {*described.get("required", ())}:
            properties[name] = _nullable(properties[name])
        return schema


def _among(value: object, candidates: tuple[object, ...]) -> bool:
    return any(type(value) is type(candidate) and value == candidate for candidate in candidates)


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    about = {key: value for key, value in schema.items() if key in ("title", "description", "default")}
    kind = {key: value for key, value in schema.items() if key not in about}
    if not kind or null in kind.get("anyOf", ()):
        return schema
    members = kind["anyOf"] if kind.keys() == {"anyOf"} else [kind]
    return {"anyOf": [*members, null], **about}


class RecordModel(NullableModel):
    """Base of the schemas of messages, which this or another server wrote: unknown keys are dropped."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class StrictModel(NullableModel):
    """Base of all request schemas: unknown keys are rejected, and types are not converted ("5" is not 5)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def check_names(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Rejects the first unknown name, which may have caused the other problems of the body."""
        known = cls.field_names()
        for name, value in body.items():
            if name not in known:
                cls.reject_name(name, value)
        return body

    @classmethod
    def reject_name(cls, name: str, value: Any) -> NoReturn:
        """Rejects an unknown field, with the most similar known one as a hint."""
        known = cls.suggestions()
        similar = difflib.get_close_matches(name, known, 1) if len(name) <= _MAX_NAME_LENGTH else []
        hint = f" Did you mean `{known[similar[0]]}`?" if similar else ""
        raise_at(name, value, PydanticCustomError("unknown_field", "Unknown field.{hint}", {"hint": hint}))

    @classmethod
    def suggestions(cls) -> Mapping[str, str]:
        """What an unknown field may have meant: paths by name."""
        return {name: name for name in cls.field_names()}


def raise_at(name: str, value: Any, error: PydanticCustomError) -> NoReturn:
    """Raises `error` in a model's validator as one of the field `name`."""
    raise ValidationError.from_exception_data("request", [InitErrorDetails(type=error, loc=(name,), input=value)])
