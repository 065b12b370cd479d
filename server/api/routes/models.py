"""`GET /v1/models`: the served models, which are what a client may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from server.access.auth import GuardedRoute
from server.api.openapi import errors_of
from server.api.routes.generation import host_of
from server.api.schemas import examples
from server.api.schemas.responses import Model, ModelList
from w2s_core.errors import UnknownModelError

if TYPE_CHECKING:
    from w2s_core.engine.planning import ServedModel

router = APIRouter(route_class=GuardedRoute)


@router.get("/v1/models", responses=examples.MODELS)
async def list_models(request: Request) -> ModelList:
    """Every served model, in the configuration's order."""
    served = host_of(request).engine.served_models
    return ModelList(data=[_described(request, model) for model in served.values()])


@router.get("/v1/models/{model_id:path}", responses=examples.MODEL | errors_of(404))
async def retrieve_model(model_id: str, request: Request) -> Model:
    """One served model; its name may contain slashes."""
    model = host_of(request).engine.served_models.get(model_id)
    if model is None:
        raise UnknownModelError(model_id)
    return _described(request, model)


def _described(request: Request, model: ServedModel) -> Model:
    created: int = request.app.state.created
    return Model(id=model.name, created=created, max_model_len=model.context_length)
