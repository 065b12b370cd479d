"""The sections that say what scores: pairs with and without an untuned model, and scorers in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.settings.config import load_settings
from tests.server.settings.test_config import REMOTE, demo_with, write
from w2s_core.config import PairConfig, PythonScorerConfig, RemotePairConfig
from w2s_core.errors import ConfigurationError

BREVITY = {"python": "my_scorers:brevity"}


def test_a_pair_may_do_without_its_untuned_model(tmp_path: Path) -> None:
    far = {"backend": "remote", "tuned": REMOTE, "untuned": None}
    settings = load_settings(write(tmp_path, demo_with(pairs__near={"tuned": "x", "untuned": None}, pairs__far=far)))
    near, remote = settings.pairs["near"], settings.pairs["far"]
    assert isinstance(near, PairConfig)
    assert isinstance(remote, RemotePairConfig)
    assert (near.untuned, remote.untuned) == (None, None)


@pytest.mark.parametrize("pair", [{"tuned": "x"}, {"backend": "remote", "tuned": REMOTE}])
def test_but_it_must_say_so(tmp_path: Path, pair: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"pairs\.p\.untuned"):
        load_settings(write(tmp_path, demo_with(pairs__p=pair)))


def test_a_scorer_in_python_guides_a_served_model_without_a_pair(tmp_path: Path) -> None:
    content = demo_with(
        scorers__brevity={**BREVITY, "options": {"words": 7}},
        served_models__short={"large": "smollm2", "guidance": {"scorers": {"brevity": 0.1}}},
    )
    settings = load_settings(write(tmp_path, content))
    assert settings.scorers == {"brevity": PythonScorerConfig("my_scorers:brevity", {"words": 7})}
    assert settings.engine_config().scorers == settings.scorers
    guidance = settings.served_models["short"].guidance
    assert guidance is not None
    assert (guidance.weights, guidance.scorers) == ({"brevity": 0.1}, {"brevity": 0.1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers__brevity": {}}, "scorers.brevity.python"),
        ({"scorers__brevity": {**BREVITY, "x": 1}}, "scorers.brevity.x"),
        ({"scorers__positive": BREVITY}, "scorers.positive: `positive` is already a name in pairs"),
        (
            {"served_models__s": {"large": "smollm2", "guidance": {"scorers": {"brevity": 1}}}},
            "served_models.s.guidance.scorers.brevity: no scorer is named `brevity` (configured: none)",
        ),
        (
            {
                "scorers__brevity": BREVITY,
                "served_models__s": {"large": "smollm2", "guidance": {"method": "eft", "scorers": {"brevity": 1}}},
            },
            "served_models.s.guidance.pairs: names no pair; method `eft` needs at least one",
        ),
        (
            {
                "scorers__brevity": BREVITY,
                "served_models__s": {"large": "smollm2", "guidance": {"proposal": "eft", "scorers": {"brevity": 1}}},
            },
            "served_models.s.guidance.pairs: names no pair; proposal `eft` needs at least one",
        ),
        (
            {
                "scorers__brevity": BREVITY,
                "served_models__s": {
                    "large": "smollm2",
                    "guidance": {"method": "eft", "pairs": {"positive": 1}, "scorers": {"brevity": 1}},
                },
            },
            "served_models.s.guidance.scorers: must be empty with method eft",
        ),
        (
            {
                "served_models__s": {
                    "large": "smollm2",
                    "guidance": {"method": "cbs", "pairs": {"positive": 1}, "early_rejection": 0.5},
                }
            },
            "served_models.s.guidance.early_rejection: must be 0 with method cbs",
        ),
    ],
)
def test_a_section_that_is_wrong_names_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(tmp_path, demo_with(**changes)))
    assert message in str(caught.value)
