"""Raw outputs of a classifier at a provider, over vLLM's endpoints `/classify` and `/pooling`.

Both take a list of texts or of token ids and apply no softmax or sigmoid where `use_activation` is false
(https://docs.vllm.ai/en/latest/models/pooling_models.html).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_core.errors import ConfigurationError, UpstreamContextLengthError, UpstreamError, UpstreamRefusedError
from w2s_core.remote.capability_probe import PROBE_TEXT, listed_context_length
from w2s_core.remote.completion import TokenCounts
from w2s_core.remote.provider import Provider
from w2s_core.types import ProviderUsage, Tokens

EndpointName: TypeAlias = Literal["classify", "pooling"]
ClassifierInput: TypeAlias = str | Tokens  # a whole text, or its token ids, special tokens included
_Values = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, fail_fast=True)]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Item(_Schema):
    """One input's outputs: `probs` of `/classify`; `data` of `/pooling`, which may have those of every token."""

    index: int
    probs: _Values | None = None
    data: _Values | Annotated[list[_Values], Field(min_length=1)] | None = None

    @property
    def outputs(self) -> Sequence[float] | None:
        """Those of the last token. None where the item has none."""
        if self.data is None:
            return self.probs
        last = self.data[-1]
        return last if isinstance(last, list) else [value for value in self.data if isinstance(value, float)]


class _Response(_Schema):
    data: list[_Item]
    usage: TokenCounts = TokenCounts()


@dataclass(frozen=True, slots=True)
class Classification:
    """The raw outputs of each input, in the inputs' order, and what they cost."""

    outputs: Sequence[Sequence[float]]
    provider_usage: ProviderUsage


@dataclass(frozen=True, slots=True)
class ClassifierCapabilities:
    """Where a provider returns raw outputs, which of them is the reward, and its context length where it lists one."""

    endpoint: EndpointName
    output: int
    context_length: int | None


async def classify(
    provider: Provider, endpoint: EndpointName, inputs: Sequence[ClassifierInput], affinity: int | None = None
) -> Classification:
    """Asks for the raw outputs of all inputs in one call. Raises what `Provider.post` raises."""
    body = {"model": provider.config.model, "input": list(inputs), "use_activation": False}
    try:
        answer = await provider.post(f"/{endpoint}", body, affinity=affinity)
    except UpstreamContextLengthError as error:
        error.param = "max_tokens"
        raise
    return _read(answer, provider.name, len(inputs))


def _read(answer: Mapping[str, Any], provider_name: str, inputs: int) -> Classification:
    """Validates a response. Raises UpstreamError, which quotes nothing of it."""
    try:
        response = _Response.model_validate(answer)
    except ValidationError:
        raise UpstreamError(f"The provider of `{provider_name}` sent outputs that are no numbers.") from None
    items = sorted(response.data, key=lambda item: item.index)
    outputs = [item.outputs for item in items if item.outputs is not None]
    complete = [item.index for item in items] == list(range(inputs)) and len(outputs) == inputs
    if not complete or len({len(values) for values in outputs}) > 1:
        raise UpstreamError(f"The provider of `{provider_name}` did not send the outputs of every text.")
    return Classification(outputs, ProviderUsage(1, response.usage.prompt_tokens, 0))


async def probe_classifier(
    provider: Provider,
    endpoint: Literal["auto", "classify", "pooling"],
    label: str | int | None,
    tokens: Tokens | None,
    key: str,
) -> ClassifierCapabilities:
    """Finds the first endpoint that works, and the output that is the reward.

    `tokens`: token ids to try it with, None where text is sent. Raises ConfigurationError, which names `key` (the
    model's place in the configuration), and what `Provider.post` raises.
    """
    length = await listed_context_length(provider, "/v1/models")
    names: tuple[EndpointName, ...] = ("classify", "pooling") if endpoint == "auto" else (endpoint,)
    failures: list[UpstreamError] = []
    for name in names:
        try:
            found = await classify(provider, name, [PROBE_TEXT if tokens is None else tokens])
        except UpstreamError as error:
            failures.append(error)
        else:
            return ClassifierCapabilities(name, _reward_output(found.outputs[0], label, key), length)
    for failure in failures:
        if not isinstance(failure, UpstreamRefusedError):
            raise failure  # it may work later
    tried = " and ".join(f"/{name}" for name in names)
    raise ConfigurationError(f"{key}: the provider scores no texts at {tried}. {failures[-1]}")


def _reward_output(outputs: Sequence[float], label: str | int | None, key: str) -> int:
    """The number of the output that is the reward. `label` is a number, which may be a string."""
    last = len(outputs) - 1
    if last and abs(sum(outputs) - 1) < 1e-3 and min(outputs) >= 0:
        raise ConfigurationError(
            f"{key}: the provider returns probabilities although raw outputs are asked for (use_activation false). "
            "Update it."
        )
    if label is None and last:
        raise ConfigurationError(f"{key}.label: the model has several outputs; choose one, 0 to {last}.")
    if label is not None and int(label) > last:
        raise ConfigurationError(f"{key}.label: the model has no output {label}; its outputs are 0 to {last}.")
    return int(label or 0)


def log_odds(outputs: Sequence[float], index: int) -> float:
    """The log-odds of one of several outputs, in nats: z_index − log Σ exp of the others. Of one output, itself."""
    others = [value for i, value in enumerate(outputs) if i != index]
    if not others:
        return outputs[index]
    largest = max(others)
    return outputs[index] - largest - math.log(sum(math.exp(value - largest) for value in others))
