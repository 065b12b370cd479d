"""How the large model samples, beyond temperature: OpenAI's penalties and biases, and vLLM's extras."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from server.api.schemas.fields import INT32_MAX, NonEmpty, Strict, TokenId

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def _not_zero(tokens: int) -> int:
    if tokens == 0:
        raise PydanticCustomError("truncation", "must be at least 1, or -1 for as many as fit")
    return tokens


class SamplingExtras(Strict):
    """Null means "not given". They shape the large model's sampling only, never the pairs' scores."""

    min_p: Annotated[
        Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None,
        Field(description="Drop tokens less likely than this part of the likeliest one."),
    ] = None
    presence_penalty: Annotated[
        Penalty | None, Field(description="Taken once from the logit of every token that the answer has already.")
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Field(description="Taken from a token's logit for each time that the answer has it.")
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None,
        Field(description="Divides positive and multiplies negative logits of tokens in the prompt and the answer."),
    ] = None
    logit_bias: Annotated[dict[TokenKey, Bias] | None, Field(description="Token id → what is added to its logit.")] = (
        None
    )
    min_tokens: Annotated[
        Annotated[int, Field(ge=0, le=INT32_MAX)] | None,
        Field(description="Until so many are drawn, no EOS, stop token or stop string ends the answer."),
    ] = None
    ignore_eos: Annotated[bool | None, Field(description="The answer goes on behind an EOS.")] = None
    stop_token_ids: Annotated[list[TokenId] | None, Field(description="Tokens that end the answer.")] = None
    allowed_token_ids: Annotated[
        Annotated[list[TokenId], Field(min_length=1)] | None, Field(description="No other token is drawn.")
    ] = None
    bad_words: Annotated[list[NonEmpty] | None, Field(description="Words that are never completed.")] = None
    include_stop_str_in_output: Annotated[
        bool | None, Field(description="Keep what ended the answer, a stop string or token, in its text.")
    ] = None
    skip_special_tokens: Annotated[bool | None, Field(description="False shows special tokens in the text.")] = None
    add_special_tokens: Annotated[
        bool | None,
        Field(description="Whether the tokenizer adds its own (BOS); by default to a raw prompt only."),
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Field(ge=-1, le=INT32_MAX), AfterValidator(_not_zero)] | None,
        Field(description="Use only the prompt's last so many tokens; -1: as many as fit beside the answer."),
    ] = None

    def sampling_extras(self) -> dict[str, Any]:
        """Keyword arguments of `SamplingParams`: those that are given."""
        given: dict[str, Any] = {
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
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
