"""The `guidance` field of a request. All keys are optional and override the served model's guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import StrictModel, Text
from w2s_core.guidance import INT32_MAX, MAX_EARLY_REJECTION, MAX_LENGTH_PENALTY, MAX_WEIGHT, Combine, Guidance, Method

Positive = Annotated[int, Field(ge=1, le=INT32_MAX)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]
Strength = Annotated[float, Field(gt=0, le=MAX_WEIGHT, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]


class Draw(StrictModel):
    """Draws the beam without replacement, one of the two: with probabilities ∝ exp(rank / `softmax`), or ∝ (rank − λ)₊
    where the mean of (rank − λ)₊ / `pessimistic` is 1."""

    softmax: Strength | None = None
    pessimistic: Strength | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.softmax is None) == (self.pessimistic is None):
            raise PydanticCustomError("select", "must have one of `softmax` and `pessimistic`")
        return self


class Decay(StrictModel):
    """K falls by this factor with each chunk, under the same total."""

    decay: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class GuidanceOptions(StrictModel):
    """How to search. A key that is left out keeps the served model's value; if that has none, the default applies."""

    method: Method = "cbs"
    pairs: dict[str, Weight] = Field(
        default_factory=dict,
        description="Weights by the pair's name. A negative weight steers away from what the pair prefers.",
    )
    reward_models: dict[str, Weight] = Field(
        default_factory=dict, description="Weights by the reward model's name. They score beside the pairs."
    )
    scorers: dict[str, Weight] = Field(
        default_factory=dict, description="Weights by the name of a scorer in Python. They score beside the pairs."
    )
    beam_width: Annotated[Positive, Field(description="W: the number of hypotheses kept after each chunk.")] = 4
    successors: Annotated[
        Positive, Field(description="K: the number of continuations per hypothesis. For best_of_n: N.")
    ] = 4
    chunk_length: Annotated[Positive, Field(description="L: the number of tokens per chunk.")] = 5
    proposal: Annotated[
        Literal["base", "eft"],
        Field(description="What cbs and best_of_n draw candidates from: the large model, or EFT with the pairs."),
    ] = "base"
    plausibility: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="For EFT: only tokens of which the large model's own probability is at least this fraction of "
            "its likeliest token's are drawn. 0 keeps all; large weights want about 0.1.",
        ),
    ] = 0.0
    trace: Annotated[
        bool | Literal["stream"],
        Field(
            description="Return the search tree in the response's `guidance.tree`. `stream`, in a streamed response: "
            "send each round as it ends instead, in a chunk without choices, as `guidance.round`."
        ),
    ] = False

    @field_validator("trace", mode="before")
    @classmethod
    def _check_trace(cls, value: Any) -> Any:
        """Refuses other values in one message, where the two members of the union would have two."""
        if not isinstance(value, bool) and value != "stream":
            raise PydanticCustomError("trace", 'must be true, false or "stream"')
        return value

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
    repetition: Annotated[
        NotNegative, Field(description="Nats that each repeated word trigram takes from an answer's rank.")
    ] = 0.0
    length_penalty: Annotated[
        float,
        Field(
            ge=-MAX_LENGTH_PENALTY,
            le=MAX_LENGTH_PENALTY,
            allow_inf_nan=False,
            description="Ranks are divided by tokens to this power; 1 is the mean.",
        ),
    ] = 0.0
    fluency: Annotated[
        NotNegative, Field(description="Weight of the answer's log-probability under the large model in its rank.")
    ] = 0.0
    early_stopping: Annotated[bool, Field(description="End the search when its best hypothesis is finished.")] = False
    select: Annotated[
        Literal["top"] | Draw,
        Field(description="How the beam is chosen by rank: the best, or drawn at random."),
    ] = "top"
    combine: Annotated[
        Combine, Field(description="How several scores become one: their sum, minimum, or robust mixture.")
    ] = "sum"
    schedule: Annotated[
        Literal["constant"] | Decay, Field(description="How the successors are spread over the chunks.")
    ] = "constant"
    early_rejection: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_EARLY_REJECTION,
            allow_inf_nan=False,
            description="For best_of_n: after each `chunk_length` tokens this fraction of the unfinished answers, the "
            "lowest in rank, is given up.",
        ),
    ] = 0.0


def merge_guidance(
    requested: GuidanceOptions | None,
    default: Guidance | None,
    *,
    best_of: int | None = None,
    only_scored: bool = False,
) -> Guidance | None:
    """Merges the request's guidance into the served model's `default`; the engine checks the result.

    What the request's method does not use is refused if the request gives it, so here it is dropped if it is the
    served model's. `best_of` above 1 is a method, too, and a text that is `only_scored` uses all scorers. Returns None
    if the engine should use the default as it is.
    """
    if requested is None:
        return None
    overrides = {key: _plain(getattr(requested, key)) for key in requested.model_fields_set - {"prompt"}}
    merged = replace(default or Guidance(), **overrides)
    if only_scored:
        return merged
    effective = replace(merged, method="best_of_n") if best_of is not None and best_of > 1 else merged
    dropped = [key for key, _ in effective.unused() if key not in overrides]
    return replace(merged, **{key: getattr(Guidance(), key) for key in dropped})


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if isinstance(value, StrictModel) else value
