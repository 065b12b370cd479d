"""`POST /tokenize` and `POST /detokenize`, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from server.api.schemas.fields import Strict, Text, TokenId
from server.api.schemas.messages import Conversation
from server.api.schemas.responses import Sent

ModelName = Annotated[
    str | None, Field(description="A served model; left out, the first one of the configuration.", min_length=1)
]


class _Asked(Strict):
    model: ModelName = None
    return_token_strs: Annotated[bool | None, Field(description="Return what the vocabulary calls the tokens.")] = False


class TokenizeText(_Asked):
    """A raw prompt."""

    prompt: Text
    add_special_tokens: Annotated[bool | None, Field(description="Let the tokenizer add its own (BOS).")] = True


class TokenizeChat(Conversation, _Asked):
    """A conversation, as the model's chat template writes it."""

    add_special_tokens: Annotated[
        bool | None, Field(description="Let the tokenizer add its own (BOS) to those that the template writes.")
    ] = False


def _kind(body: Any) -> str:
    return "conversation" if isinstance(body, dict) and "messages" in body else "raw"


TokenizeBody = Annotated[
    Annotated[TokenizeText, Tag("raw")] | Annotated[TokenizeChat, Tag("conversation")], Discriminator(_kind)
]


class Tokenized(Sent):
    """`max_model_len`: the model's context in tokens; null while the provider behind it has not been reached."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(Strict):
    model: ModelName = None
    tokens: list[TokenId]


class Detokenized(Sent):
    """The text of the tokens, special ones included."""

    prompt: str
