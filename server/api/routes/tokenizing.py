"""`POST /tokenize` and `POST /detokenize`: what a served model's large model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Request

from server.access.auth import GuardedRoute
from server.api.routes.generation import host_of
from server.api.schemas import examples
from server.api.schemas.tokenizing import DetokenizeBody, Detokenized, TokenizeBody, TokenizeChat, Tokenized
from w2s_core.errors import RequestError, UnknownModelError

if TYPE_CHECKING:
    from w2s_core.engine.engine import Engine
    from w2s_core.engine.planning import ServedModel

router = APIRouter(route_class=GuardedRoute)


@router.post("/tokenize", responses=examples.TOKENIZED)
async def tokenize(
    body: Annotated[TokenizeBody, Body(openapi_examples=examples.TOKENIZE)], request: Request
) -> Tokenized:
    """The token ids of a prompt or of a conversation: those that a request with it would be counted by."""
    engine, model = _asked(request, body.model)
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
        token_strs=tokenizer.names(tokens) if body.return_token_strs else None,
    )


@router.post("/detokenize", responses=examples.DETOKENIZED)
async def detokenize(
    body: Annotated[DetokenizeBody, Body(openapi_examples=examples.DETOKENIZE)], request: Request
) -> Detokenized:
    """The text of token ids."""
    engine, model = _asked(request, body.model)
    tokenizer = engine.tokenizer(model.name)
    for place, token in enumerate(body.tokens):
        if token >= tokenizer.size:
            raise RequestError(
                f"There is no token {token}: ids are between 0 and {tokenizer.size - 1}.", f"tokens.{place}"
            )
    return Detokenized(prompt=tokenizer.verbatim.decode(body.tokens))


def _asked(request: Request, name: str | None) -> tuple[Engine, ServedModel]:
    engine = host_of(request).engine
    served = engine.served_models
    model = next(iter(served.values())) if name is None else served.get(name)
    if model is None:
        raise UnknownModelError(str(name))
    return engine, model
