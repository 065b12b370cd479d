"""Reward model: a decoder with a sequence-classification head, in the form in which the runner calls causal LMs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from w2s_core.errors import ConfigurationError
from w2s_core.pool.specs import ModelSpec, RewardHead


class RewardModel(torch.nn.Module):
    """Returns one reward per token instead of logits: `output.logits` (1, M, 1), for the M tokens of `logits_to_keep`.

    The reward is the head's output: of one output itself, of several the log-odds of output number `index`. The head
    runs in float32, because bfloat16 would round a reward to three digits.
    """

    def __init__(self, decoder: torch.nn.Module, head: torch.nn.Linear, index: int) -> None:
        super().__init__()
        self._decoder = decoder
        self._head = head.float()
        self._index = index

    def forward(self, *, logits_to_keep: torch.Tensor, **inputs: Any) -> SimpleNamespace:
        hidden = self._decoder(**inputs)[0][:, logits_to_keep]
        return SimpleNamespace(logits=log_odds(self._head(hidden.float()), self._index))


def log_odds(outputs: torch.Tensor, index: int) -> torch.Tensor:
    """The log-odds (…, 1) of one of several `outputs` (…, n), in nats: z_index − log Σ exp of the others.

    A single output is returned as it is.
    """
    if outputs.shape[-1] == 1:
        return outputs
    others = torch.cat((outputs[..., :index], outputs[..., index + 1 :]), -1)
    return outputs[..., index : index + 1] - others.logsumexp(-1, keepdim=True)


def load_classifier(
    spec: ModelSpec, dtype: torch.dtype, **options: Any
) -> tuple[PreTrainedModel, Mapping[str, Iterable[str]]]:
    """Loads a sequence-classification model that `reward_model` can use. Returns transformers' loading info, too.

    Raises ConfigurationError, which names the key, and transformers' errors.
    """
    assert spec.reward is not None
    loaded, info = AutoModelForSequenceClassification.from_pretrained(
        spec.source,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=spec.trust_remote_code,
        output_loading_info=True,
        **options,
    )
    classifier: PreTrainedModel = loaded
    key = f"{spec.reward.key}.model"
    if classifier.base_model is classifier or not isinstance(getattr(classifier, "score", None), torch.nn.Linear):
        kind = type(classifier).__name__
        raise ConfigurationError(f"{key}: {spec.source} is a {kind}, no decoder with a linear head named `score`.")
    if any(name.startswith("score.") for name in info["missing_keys"]):
        raise ConfigurationError(f"{key}: {spec.source} has no weights for a head `score`. Is it a reward model?")
    return classifier, info


def reward_model(classifier: PreTrainedModel, head: RewardHead) -> RewardModel:
    """The reward model of what `load_classifier` has returned. Raises ConfigurationError, which names the key."""
    score = classifier.score
    assert isinstance(score, torch.nn.Linear)
    labels: dict[Any, str] = dict(classifier.config.id2label or {})
    names = [labels.get(i, str(i)) for i in range(score.out_features)]
    return RewardModel(classifier.base_model, score, output_index(head, names))


def output_index(head: RewardHead, names: Sequence[str]) -> int:
    """The number of the output that `head.label` names, 0 where there is only one. `names` are those of all outputs.

    Raises ConfigurationError, which names the key, where it names none.
    """
    label, listed = head.label, ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    if label is None:
        if len(names) == 1:
            return 0
        raise ConfigurationError(f"{head.key}.label: the model has several outputs; choose one of {listed}.")
    if label in names:
        return names.index(str(label))
    if str(label).isdecimal() and int(label) < len(names):
        return int(label)
    raise ConfigurationError(f"{head.key}.label: the model has no output `{label}`. Its outputs are {listed}.")
