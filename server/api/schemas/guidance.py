"""The `guidance` field of a request. All keys are optional and override the served model's guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from server.api.schemas.fields import INT32_MAX, StrictModel, Text
from w2s_core.types import MAX_PAIR_WEIGHT, Guidance, Method

Positive = Annotated[int, Field(ge=1, le=INT32_MAX)]
Weight = Annotated[float, Field(ge=-MAX_PAIR_WEIGHT, le=MAX_PAIR_WEIGHT, allow_inf_nan=False)]


class GuidanceOptions(StrictModel):
    """How to search. A key that is left out keeps the served model's value; if that has none, the default applies."""

    method: Method = "cbs"
    pairs: dict[str, Weight] = Field(
        default_factory=dict,
        description="Weights by the pair's name. A negative weight steers away from what the pair prefers.",
    )
    beam_width: Annotated[Positive, Field(description="W: the number of hypotheses kept after each chunk.")] = 4
    successors: Annotated[
        Positive, Field(description="K: the number of continuations per hypothesis. For best_of_n: N.")
    ] = 4
    chunk_length: Annotated[Positive, Field(description="L: the number of tokens per chunk.")] = 5
    trace: Annotated[bool, Field(description="Return the search tree in the response's `guidance.tree`.")] = False
    prompt: Annotated[
        Text | None,
        Field(
            description="Only for scoring a fixed text (`echo` with `max_tokens` 0): the beginning of the text that is "
            "the pairs' prompt and is not scored. By default the prompt is empty and all of the text is scored."
        ),
    ] = None
    max_sampled_tokens: Annotated[
        Positive | None,
        Field(
            description="The maximum number of tokens to sample, including pruned ones. Answers that could exceed it "
            "end early."
        ),
    ] = None
    thoughts: Annotated[
        bool,
        Field(
            description="Search a reasoning model's thoughts together with its answer; the pairs then read both. "
            "Otherwise the thoughts are sampled once, and the search begins behind them."
        ),
    ] = False


def merge_guidance(requested: GuidanceOptions | None, default: Guidance | None) -> Guidance | None:
    """Merges the request's guidance into the served model's `default`; the engine checks the result.

    Returns None if the engine should use the default as it is.
    """
    if requested is None:
        return None
    overrides = {key: getattr(requested, key) for key in requested.model_fields_set - {"prompt"}}
    return replace(default or Guidance(), **overrides)
