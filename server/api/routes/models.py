"""`GET /v1/models` and `GET /v1/models/{id}`: the served models, whose names clients use as `model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from server.access.auth import AuthenticatedRoute
from server.api.openapi import error_responses
from server.api.routes.generation import host_of
from server.api.schemas import examples
from server.api.schemas.models import AvailableScorers, DefaultGuidance, DefaultSampling, Model, ModelList
from w2s_core.errors import UnknownModelError

if TYPE_CHECKING:
    from w2s_core.engine.planning import ServedModel

router = APIRouter(route_class=AuthenticatedRoute)


@router.get("/v1/models", responses=examples.MODELS)
async def list_models(request: Request) -> ModelList:
    """Lists the served models, in the order of the configuration."""
    served = host_of(request).engine.served_models
    return ModelList(data=[_model_object(request, model) for model in served.values()])


@router.get("/v1/models/{model_id:path}", responses=examples.MODEL | error_responses(404))
async def retrieve_model(model_id: str, request: Request) -> Model:
    """Describes one served model. Its name may contain slashes."""
    model = host_of(request).engine.served_models.get(model_id)
    if model is None:
        raise UnknownModelError(model_id)
    return _model_object(request, model)


def _model_object(request: Request, model: ServedModel) -> Model:
    created: int = request.app.state.created
    return Model(
        id=model.name,
        created=created,
        max_model_len=model.context_length,
        default_sampling=DefaultSampling.of(model.sampling),
        default_guidance=None if model.guidance is None else DefaultGuidance.of(model.guidance),
        available_scorers=AvailableScorers.of(host_of(request).engine.scorer_keys),
    )
