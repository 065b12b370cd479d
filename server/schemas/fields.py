"""Values that several schemas share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

INT32_MAX = 2**31 - 1


def _encodable(text: str) -> str:
    """JSON can escape half of a surrogate pair; no tokenizer takes one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "contains half of a surrogate pair, which is not text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
NonEmpty = Annotated[Text, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


class Strict(BaseModel):
    """No unknown keys, no "5" for 5, no true for 1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
