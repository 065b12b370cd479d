"""The sampling fields of a request for which a served model may have defaults, with their bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag

from w2s_core.guidance import INT32_MAX

INT64_MAX = 2**63 - 1
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
StopString = Annotated[str, Field(min_length=1)]
StopList = Annotated[list[StopString], Field(max_length=4)]


def _stop_tag(value: Any) -> str:
    return "list[str]" if isinstance(value, list | tuple) else "str"


# With a discriminator, so that a wrong value gets one message and not one per member of the union.
Stop = Annotated[Annotated[StopString, Tag("str")] | Annotated[StopList, Tag("list[str]")], Discriminator(_stop_tag)]


class SamplingFields(BaseModel):
    """Sampling fields, by OpenAI's and vLLM's names. None: not given.

    They affect how the large model samples, never the pairs' scores.
    """

    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: Stop | None = None
    min_p: Annotated[
        Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None,
        Field(description="Exclude tokens whose probability is below this fraction of the most likely token's."),
    ] = None
    presence_penalty: Annotated[
        Penalty | None,
        Field(description="Subtracted once from the logit of each token that occurs in the answer so far."),
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Field(description="Subtracted from a token's logit for each occurrence in the answer so far.")
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None,
        Field(
            description="Divides positive logits of tokens in the prompt and the answer, and multiplies negative ones."
        ),
    ] = None

    def given_sampling(self) -> dict[str, Any]:
        """The given fields as keyword arguments of `SamplingParams`. A `top_k` of -1 becomes 0 (off)."""
        given = {name: getattr(self, name) for name in SamplingFields.model_fields}
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)
        if self.stop is not None:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return {name: value for name, value in given.items() if value is not None}
