"""Values that several schemas share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

INT32_MAX = 2**31 - 1
DEEPEST = 100  # objects and lists within each other; whoever walks them by recursion can go three times as deep


def _encodable(text: str) -> str:
    """JSON can escape half of a surrogate pair; no tokenizer takes one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "contains half of a surrogate pair, which is not text") from None
    return text


def shallow(value: Any) -> Any:
    """The same. Refuses what is nested deeper than `DEEPEST`."""
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
        if depth > DEEPEST:
            raise PydanticCustomError("nesting", "is nested too deeply")
    return value


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


JsonObject = Annotated[dict[str, Any], AfterValidator(shallow)]
Text = Annotated[str, AfterValidator(_encodable)]
NonEmpty = Annotated[Text, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


class Strict(BaseModel):
    """No unknown keys, no "5" for 5, no true for 1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def drop_neutral(body: Any, neutral: Mapping[str, tuple[object, ...]]) -> Any:
    """A copy of `body` without the fields whose value is listed as neutral (of the same type: false is not 0)."""
    if not isinstance(body, dict):
        return body
    return {key: value for key, value in body.items() if not _among(value, neutral.get(key, ()))}


def _among(value: object, candidates: tuple[object, ...]) -> bool:
    return any(type(value) is type(candidate) and value == candidate for candidate in candidates)
