"""The sampling fields of a request: those for which a served model may have defaults, and the others."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import NonEmptyText, StrictModel, TokenId
from server.sampling_fields import SamplingFields
from w2s_core.guidance import INT32_MAX

TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def _check_truncation(tokens: int) -> int:
    if tokens == 0:
        raise PydanticCustomError("truncation", "must be at least 1, or -1 for as many as fit the context")
    return tokens


class SamplingExtras(SamplingFields, StrictModel):
    """The sampling fields of a request, those without configurable defaults included."""

    logit_bias: Annotated[dict[TokenKey, Bias] | None, Field(description="Values to add to logits, by token id.")] = (
        None
    )
    min_tokens: Annotated[
        Annotated[int, Field(ge=0, le=INT32_MAX)] | None,
        Field(description="The minimum number of tokens before EOS, a stop token or a stop string may end the answer."),
    ] = None
    ignore_eos: Annotated[bool | None, Field(description="Continue the answer after EOS.")] = None
    stop_token_ids: Annotated[list[TokenId] | None, Field(description="Ids of tokens that end the answer.")] = None
    allowed_token_ids: Annotated[
        Annotated[list[TokenId], Field(min_length=1)] | None,
        Field(description="The ids of the only tokens that may be sampled."),
    ] = None
    bad_words: Annotated[
        list[NonEmptyText] | None,
        Field(description="Words that the answer must not contain; the token that would complete one is excluded."),
    ] = None
    include_stop_str_in_output: Annotated[
        bool | None, Field(description="Keep the stop string or stop token that ended the answer in its text.")
    ] = None
    skip_special_tokens: Annotated[
        bool | None, Field(description="Whether special tokens are left out of the text. Default: true.")
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        Field(
            description="Whether the tokenizer adds special tokens such as BOS. Default: true for a text prompt, false "
            "for chat."
        ),
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Field(ge=-1, le=INT32_MAX), AfterValidator(_check_truncation)] | None,
        Field(
            description="Keep only this many tokens at the end of the prompt; -1 keeps as many as fit the context "
            "in addition to the answer."
        ),
    ] = None

    def sampling_extras(self) -> dict[str, Any]:
        """The given ones of the fields without configurable defaults, as keyword arguments of `SamplingParams`."""
        given: dict[str, Any] = {
            "logit_bias": tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "allowed_token_ids": None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            "bad_words": tuple(self.bad_words or ()),
            "include_stop_str_in_output": self.include_stop_str_in_output,
            "skip_special_tokens": self.skip_special_tokens,
        }
        return {name: value for name, value in given.items() if value is not None}
