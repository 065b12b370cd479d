"""The arithmetic of docs/placement.md against a real search, and the page against the script's output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.placement import (
    CORES,
    DEVICE,
    LARGE_MODELS,
    LOCAL,
    LOCATIONS,
    Search,
    counts,
    overhead,
    pairs,
    score_s,
    seconds,
    shortest_chunk,
)
from tests.fakes import FakeLargeModel, FakeProposals, fake_engine, letters
from w2s_core.engine.events import RequestFinished
from w2s_core.types import GenerationRequest, Guidance, Hypothesis, SamplingParams, TextPrompt

PAGE = Path(__file__).parents[2] / "docs" / "placement.md"


@pytest.mark.parametrize("search", [Search(4, 4, 5, 7, 33), Search(2, 3, 20, 5, 20), Search(1, 8, 50, 9, 120)])
async def test_the_counts_are_those_of_a_search(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []  # tokens of each call, were the model remote
    propose = FakeProposals.propose

    async def noting(self: FakeProposals, beam: Sequence[Hypothesis], *, k: int, length: int) -> list[Hypothesis]:
        sent.extend(search.prompt + len(y.tokens) for y in beam)
        return await propose(self, beam, k=k, length=length)

    monkeypatch.setattr(FakeProposals, "propose", noting)
    large = FakeLargeModel(letters("abcdefghijklmnop", eos=0))
    guidance = Guidance("cbs", {"positive": 1.0}, search.w, search.k, search.length)
    prompt, sampling = TextPrompt("x" * search.prompt), SamplingParams(max_tokens=search.answer)
    request = GenerationRequest("guided", (prompt,), sampling, guidance)
    events = [event async for event in fake_engine(large).generate(request)]
    [report] = [event.guidance for event in events if isinstance(event, RequestFinished)]
    assert report is not None
    assert report.sampled_tokens == search.sampled
    assert len(large.calls) == search.rounds
    assert (len(sent), sum(sent)) == (search.calls, search.sent)


@pytest.mark.parametrize("large", LARGE_MODELS)
@pytest.mark.parametrize("location", LOCATIONS)
def test_the_shortest_chunk_keeps_its_promise_and_a_shorter_one_does_not(large, location) -> None:  # type: ignore[no-untyped-def]
    q = score_s(1e9, Search(2, 4, 20), DEVICE)
    least = shortest_chunk(large, location, 0.25, q)
    assert overhead(Search(2, 4, least), large, location, q) <= 1.25
    if least > 1:
        assert overhead(Search(2, 4, least - 1), large, location, q) > 1.25


def test_what_the_page_advises_follows_from_the_formulas() -> None:
    search, (small, medium, large) = Search(2, 4, 20), LARGE_MODELS
    for model, parameters in ((small, 1e9), (medium, 8e9), (large, 8e9)):
        assert score_s(parameters, search, DEVICE) < 0.1 * search.length * model.step_s
    assert score_s(0.1e9, search, CORES) < search.length * small.step_s < score_s(1e9, search, CORES)
    hosted = LOCATIONS[-1]
    assert shortest_chunk(medium, hosted, 0.5) <= 50
    assert 140 <= shortest_chunk(small, hosted, 0.25) <= 160
    assert all(overhead(Search(4, 4, 5), model, LOCAL) == 1 for model in LARGE_MODELS)


@pytest.mark.parametrize("table", [counts, seconds, pairs])
def test_the_page_shows_what_the_script_says(table) -> None:  # type: ignore[no-untyped-def]
    assert table() in PAGE.read_text(), "paste the output of `python -m benchmarks.placement`"
