"""Engines for the playground's tests: a real search over fake models, and one that says a given text."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from tests.fakes import FakeLargeModel, FakeScorer, fake_engine, letters
from tests.server.fake_engine import REPORT, FakeEngine, hypothesis
from w2s_core.engine.events import ChoiceFinished, Event, RequestFinished, RoundFinished, TextCommitted
from w2s_core.search.tree import RoundCandidate
from w2s_core.types import GenerationRequest


def searching(eos: float = 0.02, **options: Any) -> Any:
    """A real search over fake models."""
    return fake_engine(FakeLargeModel(letters("abcdefgh ", eos), **options), {"positive": FakeScorer()})


def saying(text: str) -> Any:
    """An engine that answers every request with this text, and shows it as the one candidate of a search."""

    def script(request: GenerationRequest) -> list[Event]:
        scores = MappingProxyType({text[:20]: 1.0})
        one = RoundCandidate(0, None, 0, text, 1.0, 1.0, scores, "stop", "finished")
        return [
            RoundFinished(0, [0], 1, [one], len(text), 4, 4, 0.1),
            TextCommitted(0, text, prompt_tokens=3, completion_tokens=4),
            ChoiceFinished(0, hypothesis(text, guided=True), True),
            RequestFinished(3, 4, REPORT),
        ]

    return FakeEngine(script)
