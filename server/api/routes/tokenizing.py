"""`POST /tokenize` and `POST /detokenize`, with the tokenizer of a served model's large model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Request

from server.access.auth import AuthenticatedRoute
from server.api.routes.generation import host_of
from server.api.schemas import examples
from server.api.schemas.tokenizing import DetokenizeBody, Detokenized, TokenizeBody, TokenizeChat, Tokenized
from w2s_core.errors import RequestError, UnknownModelError

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine
    from w2s_core.engine.planning import ServedModel

router = APIRouter(route_class=AuthenticatedRoute)


@router.post("/tokenize", responses=examples.TOKENIZED)
async def tokenize(
    body: Annotated[TokenizeBody, Body(openapi_examples=examples.TOKENIZE)], request: Request
) -> Tokenized:
    """Returns the token ids of a prompt or conversation, as a generation request with it would use them."""
    engine, model = _resolve_model(request, body.model)
    tokenizer = engine.tokenizer(model.name)
    special = bool(body.add_special_tokens)
    if isinstance(body, TokenizeChat):
        tokens = tokenizer.encode_chat(body.chat_prompt(body.tools or [], special_tokens=special))
    else:
        tokens = tokenizer.encode(body.prompt, special_tokens=special)
    return Tokenized(
        count=len(tokens),
        max_model_len=model.context_length,
        tokens=list(tokens),
        token_strs=tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None,
    )


@router.post("/detokenize", responses=examples.DETOKENIZED)
async def detokenize(
    body: Annotated[DetokenizeBody, Body(openapi_examples=examples.DETOKENIZE)], request: Request
) -> Detokenized:
    """Returns the text of token ids."""
    engine, model = _resolve_model(request, body.model)
    tokenizer = engine.tokenizer(model.name)
    for position, token in enumerate(body.tokens):
        if token >= tokenizer.size:
            raise RequestError(
                f"Token id {token} does not exist: ids are between 0 and {tokenizer.size - 1}.", f"tokens.{position}"
            )
    return Detokenized(prompt=tokenizer.verbatim.decode(body.tokens))


def _resolve_model(request: Request, name: str | None) -> tuple[Engine, ServedModel]:
    """The engine and the served model of this name; without a name, the first one configured."""
    engine = host_of(request).engine
    served = engine.served_models
    model = next(iter(served.values())) if name is None else served.get(name)
    if model is None:
        raise UnknownModelError(str(name))
    return engine, model
