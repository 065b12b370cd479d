"""Names of remote models: each is a label in metrics, so no two may have the same."""

from __future__ import annotations

import pytest

from w2s_core.build.engine import build_engine
from w2s_core.config import (
    EngineConfig,
    RemoteLargeModelConfig,
    RemoteModelConfig,
    RemotePairConfig,
    RemoteRewardModelConfig,
)
from w2s_core.errors import ConfigurationError

AT = "http://127.0.0.1:9/v1"
LARGE = RemoteLargeModelConfig(base_url=AT, model="m")
REWARD = RemoteRewardModelConfig(base_url=AT, model="m")
ONE = RemoteModelConfig(base_url=AT, model="m")
PAIR = RemotePairConfig(tuned=ONE, untuned=ONE)


@pytest.mark.parametrize(
    ("large", "other", "message"),
    [
        ("far", {"reward_models": {"far": REWARD}}, r"^reward_models\.far: metrics .* of large_models\.far, as `far`"),
        ("far.tuned", {"pairs": {"far": PAIR}}, r"^pairs\.far\.tuned: metrics .* of large_models\.far\.tuned, as "),
    ],
)
def test_a_label_of_two_models_is_refused(large: str, other: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_engine(EngineConfig({large: LARGE}, {}, **other))  # type: ignore[arg-type]


def test_other_names_may_be_used_again() -> None:
    """A pair's models are labelled by their role, so that a pair may be called as the large model that it guides."""
    build_engine(EngineConfig({"far": LARGE}, {}, {"far": PAIR}, reward_models={"judge": REWARD}))
