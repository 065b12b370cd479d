"""Proxy tuning (EFT) of a local large model by local pairs: which of them can, and what their models read.

The worker adds the pairs' logits to the large model's (`w2s_core.worker.proxy_tuning`), so that all of them must run in
one worker and have one vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

from w2s_core.errors import RequestError
from w2s_core.interfaces import LargeModel
from w2s_core.pool.messages import Expert
from w2s_core.pool.pool import WorkerPool
from w2s_core.scorers.pair_model import PairModel
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Guidance, Prompt


class SteerableModel(LargeModel, Protocol):
    """A large model whose draws experts can change: `w2s_core.large.local.LocalLargeModel`."""

    @property
    def vocabulary(self) -> int: ...
    def with_experts(self, experts: tuple[Expert, ...], plausibility: float) -> Self: ...


@dataclass(frozen=True, slots=True)
class ProxyPair:
    """A pair whose token ids are the large model's. `template`: see `PairConfig.prompt_template`.

    `devices` are those on which both of its models and the large model run.
    """

    tuned: PairModel
    untuned: PairModel | None
    template: str | None
    devices: frozenset[str]

    @property
    def signed_models(self) -> dict[PairModel, int]:
        """Its models, each with the sign of its logits: in an order in which equal logits of π_base cancel exactly."""
        return {self.tuned: 1} if self.untuned is None else {self.untuned: -1, self.tuned: 1}


def same_ids(one: HFTokenizer, other: HFTokenizer) -> bool:
    """Whether the ids that both tokenizers have are those of the same tokens. Either may have more."""
    tokens = {token_id: token for token, token_id in one.vocabulary.items()}
    return all(tokens.get(token_id, token) == token for token, token_id in other.vocabulary.items())


class LocalProxyTuner:
    """A `ProxyTuner` for one large model. `pairs` are all configured pairs; instead of one that cannot steer this model
    there is the reason."""

    def __init__(self, large: SteerableModel, pool: WorkerPool, pairs: Mapping[str, ProxyPair | str]) -> None:
        self._large = large
        self._pool = pool
        self._pairs = pairs

    def tune(self, guidance: Guidance, prompt: Prompt, max_tokens: int, field: str) -> tuple[LargeModel, int]:
        weights: dict[tuple[str, tuple[int, ...], int], float] = {}
        for pair, weight in self._steering_pairs(guidance, field):
            infos = {model: self._pool.info(model.pool_name) for model in pair.signed_models}
            vocabulary = min(self._large.vocabulary, *(info.vocabulary for info in infos.values()))
            for model, sign in pair.signed_models.items():
                limit, readable = infos[model].max_length, infos[model].vocabulary
                max_tokens = model.max_answer_tokens(prompt, pair.template, limit, max_tokens, readable)
                key = model.pool_name, model.prompt(prompt, pair.template), vocabulary
                weights[key] = weights.get(key, 0.0) + sign * weight
        experts = tuple(
            Expert(model, tokens, weight, size) for (model, tokens, size), weight in weights.items() if weight
        )
        return self._large.with_experts(experts, guidance.plausibility), max_tokens

    def _steering_pairs(self, guidance: Guidance, field: str) -> list[tuple[ProxyPair, float]]:
        chosen: list[tuple[ProxyPair, float]] = []
        for name, weight in guidance.pairs.items():
            pair = self._pairs[name]
            if isinstance(pair, str):
                raise RequestError(f"EFT cannot use the pair `{name}`: {pair}", field)
            chosen.append((pair, weight))
        if not frozenset.intersection(*(pair.devices for pair, _ in chosen)):
            raise RequestError("EFT cannot use these pairs together: no device has the models of all of them.", field)
        return chosen


def proxy_pair(pair: ProxyPair, large: HFTokenizer) -> ProxyPair | str:
    """The pair, or the reason why it cannot steer the large model with this tokenizer."""
    for model in pair.signed_models:
        if not same_ids(large, model.tokenizer):
            return (
                f"{model.name} has another vocabulary than the large model. Its scores can guide a search: use "
                'guidance.method "cbs" or "best_of_n" with guidance.proposal "base".'
            )
    if not pair.devices:
        return "its models and the large model have no device in common."
    untuned = None if pair.untuned is None else replace(pair.untuned, shares_tokens=True)
    return replace(pair, tuned=replace(pair.tuned, shares_tokens=True), untuned=untuned)
