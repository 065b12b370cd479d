"""The `served_models` section: the names of the API, each with the guidance and the sampling of its requests."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from server.sampling_fields import SamplingFields
from w2s_core.config import ServedModelConfig
from w2s_core.types import Guidance


class SamplingDefaults(SamplingFields):
    """Defaults for a request's own fields, by their names and with their bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServedModelSettings(BaseModel):
    """One served model: a key of `large_models`, and what holds for requests that do not say otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    large: str
    guidance: Guidance | None = None
    sampling: SamplingDefaults | None = None

    def to_config(self) -> ServedModelConfig:
        """The served model as the engine takes it."""
        return ServedModelConfig(self.large, self.guidance, self.sampling.given_sampling() if self.sampling else {})
