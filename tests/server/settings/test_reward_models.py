"""Reward models in the settings: what is read, and what is refused by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.settings.config import load_settings
from server.settings.reload import changed_keys
from tests.server.settings.test_config import REMOTE, demo_with, write
from w2s_core.config import RemoteRewardModelConfig, RewardModelConfig
from w2s_core.errors import ConfigurationError

LOCAL = {"model": "/models/reward"}


def guided_by(**weights: Any) -> dict[str, Any]:
    return {"large": "smollm2", "guidance": {"reward_models": weights}}


def test_local_and_remote_reward_models_are_read(tmp_path: Path) -> None:
    far = {"backend": "remote", **REMOTE, "endpoint": "pooling", "label": 1}
    content = demo_with(
        reward_models={"near": LOCAL | {"label": "good"}, "far": far}, served_models__x=guided_by(near=2)
    )
    settings = load_settings(write(tmp_path, content))
    assert settings.reward_models["near"] == RewardModelConfig("/models/reward", label="good")
    assert settings.reward_models["far"] == RemoteRewardModelConfig(
        base_url="http://x/v1", model="m", endpoint="pooling", label=1
    )
    engine = settings.engine_config()
    assert engine.reward_models == settings.reward_models
    guidance = engine.served_models["x"].guidance
    assert guidance is not None
    assert (guidance.reward_models, guidance.pairs, guidance.method) == ({"near": 2}, {}, "cbs")


def test_a_label_may_be_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2S_REWARD_MODELS__NEAR__MODEL", "/models/reward")
    monkeypatch.setenv("W2S_REWARD_MODELS__NEAR__LABEL", "1")
    assert str(load_settings().reward_models["near"].label) == "1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (demo_with(served_models__x=guided_by(nobody=1)), "guidance.reward_models.nobody: no reward model is named"),
        (
            demo_with(reward_models={"near": LOCAL}, served_models__x=guided_by(near=float("nan"))),
            "served_models.x.guidance.reward_models.near: must be at most 1,000,000",
        ),
        (demo_with(reward_models={"positive": LOCAL}), "reward_models.positive: `positive` is already a name in pairs"),
        (
            demo_with(reward_models={"near": LOCAL | {"backend": "abacus"}}),
            "reward_models.near.backend: must be `local`",
        ),
        (demo_with(reward_models={"near": {}}), "reward_models.near.model: "),
        (demo_with(reward_models={"near": LOCAL | {"flavor": "vllm"}}), "reward_models.near.flavor: "),
        (
            demo_with(reward_models={"far": {"backend": "remote", **REMOTE, "label": "good"}}),
            "reward_models.far.label: must be the output's number",
        ),
        (
            demo_with(reward_models={"far": {"backend": "remote", **REMOTE, "label": -1}}),
            "reward_models.far.label: must be the output's number",
        ),
        (
            demo_with(reward_models={"far": {"backend": "remote", **REMOTE, "max_retries": -1}}),
            "reward_models.far.max_retries: must be at least 0",
        ),
        (
            demo_with(reward_models={"far": {"backend": "remote", **REMOTE, "endpoint": "score"}}),
            "reward_models.far.endpoint: ",
        ),
        (
            demo_with(
                reward_models={"near": LOCAL},
                served_models__x={"large": "smollm2", "guidance": {"method": "eft", "reward_models": {"near": 1}}},
            ),
            "served_models.x.guidance.pairs: names no pair; method `eft`",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_naming_the_key(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_settings(write(tmp_path, content))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_changed_reward_model_is_told_at_a_reload(tmp_path: Path) -> None:
    old, new = (
        load_settings(write(tmp_path, demo_with(reward_models={"near": {"model": model}}))) for model in ("/a", "/b")
    )
    assert changed_keys(old, new) == ["reward_models.near"]
    assert old.fingerprint != new.fingerprint
