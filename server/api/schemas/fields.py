"""Field types and base classes that several schemas share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

INT32_MAX = 2**31 - 1
MAX_NESTING = 100  # levels of objects and lists; code that recurses over them could go three times as deep


def check_encodable(text: str) -> str:
    """Rejects half a surrogate pair, which JSON can escape and no tokenizer accepts."""
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


class StrictModel(BaseModel):
    """Base of all request schemas: unknown keys are rejected, and types are not converted ("5" is not 5)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RecordModel(BaseModel):
    """Base of the schemas of messages, which this or another server wrote: unknown keys are dropped."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def drop_neutral_values(body: Any, neutral: Mapping[str, tuple[object, ...]]) -> Any:
    """A copy of `body` without the fields whose value is in `neutral`. Types must match, too: false is not 0."""
    if not isinstance(body, dict):
        return body
    return {key: value for key, value in body.items() if not _among(value, neutral.get(key, ()))}


def _among(value: object, candidates: tuple[object, ...]) -> bool:
    return any(type(value) is type(candidate) and value == candidate for candidate in candidates)
