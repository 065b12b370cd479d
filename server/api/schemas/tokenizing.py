"""Schemas of `POST /tokenize` and `POST /detokenize`, in vLLM's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from server.api.schemas.conversation import Conversation
from server.api.schemas.fields import StrictModel, Text, TokenId
from server.api.schemas.responses import ResponseModel

ModelName = Annotated[
    str | None,
    Field(description="The name of a served model. Default: the first one in the configuration.", min_length=1),
]


class _TokenizeFields(StrictModel):
    """The fields that both kinds of `/tokenize` requests share."""

    model: ModelName = None
    return_token_strs: Annotated[
        bool | None, Field(description="Return the tokens as they are spelled in the vocabulary, too.")
    ] = False


class TokenizeText(_TokenizeFields):
    """A request to tokenize a text prompt."""

    neutral_values: ClassVar[Mapping[str, tuple[object, ...]]] = dict.fromkeys(Conversation.model_fields, (None,))

    prompt: Text
    add_special_tokens: Annotated[
        bool | None, Field(description="Whether the tokenizer adds special tokens such as BOS.")
    ] = True


class TokenizeChat(Conversation, _TokenizeFields):
    """A request to tokenize a conversation, rendered by the model's chat template."""

    neutral_values: ClassVar[Mapping[str, tuple[object, ...]]] = {"prompt": (None,)}

    add_special_tokens: Annotated[
        bool | None,
        Field(description="Whether the tokenizer adds special tokens such as BOS to those that the template writes."),
    ] = False


def _body_tag(body: Any) -> str:
    return "conversation" if isinstance(body, dict) and body.get("messages") is not None else "raw"


TokenizeBody = Annotated[
    Annotated[TokenizeText, Tag("raw")] | Annotated[TokenizeChat, Tag("conversation")], Discriminator(_body_tag)
]


class Tokenized(ResponseModel):
    """The tokens. `max_model_len` is the model's context length in tokens.

    It is null as long as the provider of a remote model has not been reached.
    """

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(StrictModel):
    """A request for the text of tokens."""

    model: ModelName = None
    tokens: list[TokenId]


class Detokenized(ResponseModel):
    """The text of the tokens, including special ones."""

    prompt: str
