"""The response schemas of `/v1/models`: what is served, and what holds where a request says nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from server.api.schemas.guidance import GuidanceOptions
from server.api.schemas.responses import ResponseModel
from w2s_core.guidance import Guidance
from w2s_core.types import SamplingParams


class DefaultSampling(ResponseModel):
    """What holds for the sampling fields that a request does not give.

    `max_tokens` null: 16 for a completion, and for chat as many as fit the context.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int | None = None
    stop: list[str]
    seed: int | None = None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float

    @classmethod
    def of(cls, sampling: SamplingParams) -> DefaultSampling:
        """The served model's default parameters."""
        fields = {name: getattr(sampling, name) for name in cls.model_fields}
        return cls(**fields | {"stop": list(sampling.stop)})


class DefaultGuidance(GuidanceOptions):
    """The guidance of a served model, every key."""

    prompt: None = Field(default=None, exclude=True)  # a request's alone

    @classmethod
    def of(cls, guidance: Guidance) -> DefaultGuidance:
        """The served model's own guidance."""
        return cls(**{field.name: _as_json(getattr(guidance, field.name)) for field in dataclasses.fields(guidance)})


def _as_json(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


class AvailableScorers(ResponseModel):
    """The names that a request may give weights to, under the keys of `guidance` that they belong to."""

    pairs: list[str]
    reward_models: list[str]
    scorers: list[str]

    @classmethod
    def of(cls, keys: Mapping[str, str]) -> AvailableScorers:
        """`keys` are the engine's: the key of `guidance` by each scorer's name."""
        return cls(**{field: [name for name, key in keys.items() if key == field] for field in cls.model_fields})


class Model(ResponseModel):
    """A served model. `max_model_len` (a vLLM extension) is its context length in tokens, prompt and answer together.

    It is null as long as the provider of a remote model has not been reached. `default_guidance` is what holds where a
    request's `guidance` says nothing, null if the model is sampled plainly.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str = "w2s"
    max_model_len: int | None
    default_sampling: DefaultSampling
    default_guidance: DefaultGuidance | None = None
    available_scorers: AvailableScorers


class ModelList(ResponseModel):
    """All served models."""

    object: str = "list"
    data: list[Model]
