"""The `guidance` of a request's body: every key optional, laid over the served model's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from server.api.schemas.fields import INT32_MAX, Text
from w2s_core.errors import RequestError
from w2s_core.types import Guidance, Method

Positive = Annotated[int, Field(ge=1, le=INT32_MAX)]


class GuidanceOptions(BaseModel):
    """How to search. Keys that are left out keep the served model's value, or else the default shown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    method: Method = "cbs"
    pairs: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict, description="Name of a pair → its weight; negative weights steer away."
    )
    beam_width: Annotated[Positive, Field(description="W: hypotheses kept after each chunk.")] = 4
    successors: Annotated[Positive, Field(description="K: continuations of each; for best_of_n, N.")] = 4
    chunk_length: Annotated[Positive, Field(description="L: tokens per chunk.")] = 5
    trace: Annotated[bool, Field(description="Return the search tree.")] = False
    prompt: Annotated[
        Text | None,
        Field(
            description="Of texts that are only scored (`echo` with `max_tokens` 0): the beginning that is the pairs' "
            "prompt and not scored. By default all is scored, behind an empty prompt."
        ),
    ] = None
    max_sampled_tokens: Annotated[
        Positive | None,
        Field(description="Tokens that may be drawn, pruned ones included; answers that could take more end early."),
    ] = None


def effective_guidance(asked: GuidanceOptions | None, default: Guidance | None, n: int) -> Guidance | None:
    """What the engine shall do, or None for the served model's own. Raises RequestError("guidance.pairs")."""
    if asked is None and (default is None or default.method != "best_of_n"):
        return None
    overrides = {key: getattr(asked, key) for key in asked.model_fields_set - {"prompt"}} if asked is not None else {}
    guidance = replace(default or Guidance(), **overrides)
    if guidance.method == "cbs" and not guidance.pairs:
        raise RequestError(
            'This model has no pairs of its own: name some, for example {"pairs": {"NAME": 1.0}}.', "guidance.pairs"
        )
    if guidance.method == "best_of_n":  # `successors` is N, and the n best of them are returned
        return replace(guidance, beam_width=n)
    return guidance
