"""The content of chat messages: text, or parts of which the text and the reasoning are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, Discriminator, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import RecordModel, Text, check_encodable

# By the type of a part, the kind of it. Calls of tools are in a message's `tool_calls` as well.
_PART_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text part"),  # OpenAI's chat and responses APIs
    "refusal": "refusal part",
    **dict.fromkeys(("thinking", "reasoning", "reasoning_content"), "reasoning part"),  # Anthropic, LangChain, Bedrock
    **dict.fromkeys(("redacted_thinking", "tool_use", "tool_call", "function_call"), "dropped part"),
}


def _loose_text(value: Any) -> str | None:
    return check_encodable(value) if isinstance(value, str) else None


LooseText = Annotated[Any, AfterValidator(_loose_text)]  # text, or what no template can use and is dropped


class TextPart(RecordModel):
    """Text."""

    text: Text


class RefusalPart(RecordModel):
    """What a model said instead of an answer."""

    refusal: Text


class ReasoningPart(RecordModel):
    """What a reasoning model thought: text, or at Mistral a list of text parts."""

    thinking: Any = None
    reasoning: Any = None

    @property
    def text(self) -> str | None:
        """The thoughts, if they are text."""
        thoughts = self.thinking or self.reasoning
        if isinstance(thoughts, Sequence) and not isinstance(thoughts, str):
            texts = [part.get("text") for part in thoughts if isinstance(part, Mapping)]
            thoughts = "\n".join(text for text in texts if isinstance(text, str))
        return thoughts if isinstance(thoughts, str) and thoughts else None


class DroppedPart(RecordModel):
    """A part that no chat template can use."""


def _reject_type(kind: Any) -> NoReturn:
    raise PydanticCustomError("part", "only text can be read, not `{type}`", {"type": str(kind)})


class UnsupportedPart(RecordModel):
    """A part that cannot be rendered, such as an image."""

    type: Annotated[Any, AfterValidator(_reject_type), WithJsonSchema({"type": "string"})]


def _part_tag(part: Any) -> str:
    """A string and a part without a type are text, as in LangChain and vLLM."""
    if isinstance(part, str):
        return "string"
    kind = part.get("type") if isinstance(part, Mapping) else None
    return _PART_KINDS.get(kind or "text", "unsupported part") if isinstance(kind, str | None) else "unsupported part"


Part = Annotated[
    Annotated[Text, Tag("string")]
    | Annotated[TextPart, Tag("text part")]
    | Annotated[RefusalPart, Tag("refusal part")]
    | Annotated[ReasoningPart, Tag("reasoning part")]
    | Annotated[DroppedPart, Tag("dropped part")]
    | Annotated[UnsupportedPart, Tag("unsupported part")],
    Discriminator(_part_tag),
]


def _content_tag(value: Any) -> str:
    return "parts" if isinstance(value, list) else "string"


Content = Annotated[Annotated[Text, Tag("string")] | Annotated[list[Part], Tag("parts")], Discriminator(_content_tag)]


def content_text(content: str | Sequence[Any] | None) -> str | None:
    """The text of the content, its parts joined by newlines, as in vLLM; None if there is none."""
    if content is None or isinstance(content, str):
        return content
    return "\n".join(_texts(content)) if content else ""


def _texts(parts: Sequence[Any]) -> list[str]:
    texts = []
    for part in parts:
        match part:
            case str():
                texts.append(part)
            case TextPart():
                texts.append(part.text)
            case RefusalPart():
                texts.append(part.refusal)
            case _:
                pass
    return texts


def content_reasoning(content: str | Sequence[Any] | None) -> str | None:
    """The text of the reasoning parts, if there are any."""
    if content is None or isinstance(content, str):
        return None
    return "\n".join(part.text for part in content if isinstance(part, ReasoningPart) and part.text) or None
