"""What the tests of reward models over workers share: an engine with several, and rewards by transformers alone."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from tests.tiny import save_tiny_classifier
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    PairConfig,
    RewardModelConfig,
    ServedModelConfig,
    WorkersConfig,
)
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import Guidance, Hypothesis, Prompt, ProviderUsage, Score, TextPrompt

LABELS = ("bad", "fair", "good")
HELPFUL = Guidance("cbs", {}, 3, 3, 4, reward_models={"helpful": 1.0})


def reward_folders(root: Path) -> dict[str, Path]:
    """`llama`: one output and the large model's vocabulary. `gpt2`: three outputs and another one. `qwen3`: one."""
    return {
        "llama": save_tiny_classifier(root / "llama", seed=5),
        "gpt2": save_tiny_classifier(root / "gpt2", family="gpt2", seed=6, labels=LABELS, pairs=True),
        "qwen3": save_tiny_classifier(root / "qwen3", family="qwen3", seed=7),
    }


def reward_config(folders: dict[str, Path], classifiers: dict[str, Path]) -> EngineConfig:
    """Served: `plain`, and `rewarded` by `helpful`. `folders`: see conftest; `classifiers`: see `reward_folders`."""
    gpt2 = str(classifiers["gpt2"])
    return EngineConfig(
        large_models={"large": LargeModelConfig(str(folders["large"]))},
        pairs={"same": PairConfig(str(folders["tuned"]), str(folders["untuned"]))},
        reward_models={
            "helpful": RewardModelConfig(str(classifiers["llama"])),
            "good": RewardModelConfig(gpt2, label="good", prompt_template="Q: {prompt}"),
            "bad": RewardModelConfig(gpt2, label=0, prompt_template=""),
            "kind": RewardModelConfig(str(classifiers["qwen3"])),
        },
        served_models={"plain": ServedModelConfig("large"), "rewarded": ServedModelConfig("large", HELPFUL)},
        workers=WorkersConfig(devices=("cpu",), threads=1, dtype="float32"),
    )


class Oracle:
    """A `Scorer` that computes every reward by transformers alone, from the whole text.

    `shares_tokens`: the answers' own tokens are read, else those of their text.
    """

    def __init__(self, folder: Path, *, label: int = 0, template: str = "{prompt}", shares_tokens: bool = True) -> None:
        self._model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self._model.config.pad_token_id = None  # else transformers reads the token before a trailing EOS, which pads
        self._tokenizer = HFTokenizer(str(folder))
        self._label = label
        self._template = template
        self._shares_tokens = shares_tokens

    def check(self, prompt: Prompt, max_tokens: int) -> int:
        return max_tokens

    @asynccontextmanager
    async def open(self, prompt: Prompt) -> AsyncIterator[OracleScoring]:
        assert isinstance(prompt, TextPrompt)
        yield OracleScoring(lambda y: self.reward(prompt.text, y))

    def reward(self, x: str, y: Hypothesis) -> float:
        text = self._template.replace("{prompt}", x)
        prompt = self._tokenizer.encode(text, special_tokens=True) or self._tokenizer.empty_prompt
        tokens = y.tokens if self._shares_tokens else self._tokenizer.encode(y.text, special_tokens=False)
        assert self._tokenizer.eos is not None
        whole = (*prompt, *tokens, *((self._tokenizer.eos,) if y.ended else ()))
        with torch.inference_mode():
            outputs = self._model(input_ids=torch.tensor([whole])).logits[0].tolist()
        others = [value for i, value in enumerate(outputs) if i != self._label]
        return float(outputs[self._label]) - (math.log(sum(map(math.exp, others))) if others else 0.0)


class OracleScoring:
    provider_usage = ProviderUsage()
    scored_tokens = 0

    def __init__(self, reward: Callable[[Hypothesis], float]) -> None:
        self._reward = reward

    async def prefetch(self, candidates: Sequence[Hypothesis]) -> None:
        pass

    async def score(self, candidates: Sequence[Hypothesis]) -> list[Score]:
        return [Score(self._reward(y)) for y in candidates]
