"""The sentiment experiment over fakes: the real engine, search and HTTP API, no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from server.commands.in_process import client_of
from tests.fakes import FakeLargeModel, FakeScorer, letters
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.evaluation.folder import open_folder
from w2s_core.evaluation.likelihood import LikelihoodEvaluator
from w2s_core.evaluation.prompts import DEVELOPMENT, OPENERS, PREFIX
from w2s_core.evaluation.records import AnswerRecord
from w2s_core.evaluation.results import Results, build_results
from w2s_core.evaluation.run import answered, summarize_run
from w2s_core.evaluation.scoring import ScoredAnswer, score_answers
from w2s_core.evaluation.settings import (
    BASE,
    BEST_OF,
    CBS,
    LARGE,
    PAIR,
    WEAK,
    WEAK_ALONE,
    Settings,
    experiment,
    methods,
)
from w2s_core.types import TextPrompt

SETTINGS = Settings(prompts=6, seeds=2, ablation_seeds=1, max_tokens=(12,), top_k=0, temperature=1.0)
LABELS = {method.label: method.name for method in methods(SETTINGS)}


def method_of(answer: AnswerRecord) -> str:
    return LABELS[answer.condition]


class Fakes:
    """A large model and a weak one that write a, b and blanks; the pair and the judge like the letter a."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.large = FakeLargeModel(letters(eos=0.02))
        self.weak = FakeLargeModel(letters("aaab ", eos=0.3))
        self.scorer = FakeScorer()
        models = {LARGE: self.large, WEAK: self.weak}
        self.engine = Engine(models, {PAIR: self.scorer}, {name: ServedModelConfig(name) for name in models})
        self.likelihood_calls: list[tuple[str, str]] = []

    async def answers(self, settings: Settings = SETTINGS) -> list[AnswerRecord]:
        every = experiment(settings)
        weak = {
            method.label: lambda prompt: prompt.answer_prefix for method in methods(settings) if method.model == WEAK
        }
        with open_folder(self.folder, every) as folder:
            return await answered(every, folder, client_of(lambda: self.engine), settings.concurrency, weak)

    async def likelihood(self, prompt: str, text: str) -> float | None:
        self.likelihood_calls.append((prompt, text))
        return -5.0 if text else None

    async def scored(self, answers: list[AnswerRecord]) -> list[ScoredAnswer]:
        judges = {
            "judge": lambda texts: [t.count("a") / len(t) for t in texts],
            "vader": lambda texts: [0.0 for _ in texts],
        }
        return await score_answers(answers, LikelihoodEvaluator(self.scorer, self.likelihood), judges, lambda: None)

    async def results(self, settings: Settings = SETTINGS) -> Results:
        return build_results(settings, await self.scored(await self.answers(settings)), {}, 0.0)


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path / "out")


async def test_every_opener_is_answered_by_every_condition_with_every_seed(fakes: Fakes) -> None:
    answers = await fakes.answers()
    expected = {method.name: 6 * method.seeds for method in methods(SETTINGS)}
    assert Counter(map(method_of, answers)) == expected
    base = [(a.prompt, a.seed) for a in answers if method_of(a) == BASE]
    assert base[:3] == [(OPENERS[0], 0), (OPENERS[0], 1), (OPENERS[1], 0)]
    assert fakes.large.open_sessions == fakes.scorer.open_sessions == 0


async def test_guidance_raises_what_the_pair_likes_and_search_beats_ranking(fakes: Fakes) -> None:
    """Means over 12 answers; the gaps are many standard errors wide and the draws are seeded."""
    results = await fakes.results()
    means = {row.condition: row.estimates["implicit"] for row in results.comparisons[0].summaries}
    base, best, cbs = (means[name] for name in (BASE, BEST_OF, CBS))
    assert base is not None and best is not None and cbs is not None  # noqa: PT018
    assert base.mean + 2 < best.mean < cbs.mean - 0.5


async def test_what_an_answer_costs(fakes: Fakes) -> None:
    answers = await fakes.answers(Settings(prompts=1, seeds=1, max_tokens=(12,), top_k=0))
    costs = {method_of(answer): answer for answer in answers}
    assert costs[BASE].sampled_tokens == costs[BASE].completion_tokens <= 12
    assert 12 < costs[CBS].sampled_tokens <= 16 * 12
    assert costs[CBS].seconds > 0


async def test_the_pair_sees_the_large_models_prompt_and_the_weak_model_only_the_opener(fakes: Fakes) -> None:
    seen: list[str] = []
    fakes.weak.encode = lambda prompt: seen.append(prompt.text) or (1,)  # type: ignore[method-assign,union-attr,func-returns-value]
    await fakes.answers()
    assert set(seen) == set(OPENERS[:6])
    assert set(fakes.scorer.prompts) == {TextPrompt(PREFIX + opener) for opener in OPENERS[:6]}


async def test_every_method_is_measured_by_the_same_instrument(fakes: Fakes) -> None:
    answers = await fakes.answers()
    for m in await fakes.scored(answers):
        text, ended = m.answer.texts[0], m.answer.finish_reasons == ("stop",)
        judged = m.answer.prompt + text
        assert m.values["implicit"] == fakes.scorer.nats(text, ended)
        assert m.values["judge"] == judged.count("a") / len(judged)
    asked = [(PREFIX + a.prompt, a.texts[0]) for a in answers if method_of(a) == WEAK_ALONE or not a.texts[0]]
    assert sorted(fakes.likelihood_calls) == sorted(asked), "the others' log-probabilities are known"


async def test_log_probability_per_token_leaves_the_ending_token_out(fakes: Fakes) -> None:
    """Letters have probability 0.98 / 3 each and the end 0.02, whose logarithm would show."""
    answers = await fakes.answers()
    assert any(a.finish_reasons == ("stop",) for a in answers if method_of(a) == BASE)
    for m in await fakes.scored([a for a in answers if method_of(a) != WEAK_ALONE and a.texts[0]]):
        assert m.values["logprob"] == pytest.approx(-1.1188, abs=1e-3)


async def test_seeds_differ_between_openers_and_agree_between_runs(fakes: Fakes, tmp_path: Path) -> None:
    base = {a.key: a.texts for a in await fakes.answers() if method_of(a) == BASE}
    assert len(set(base.values())) == len(base), "12 draws of about 12 letters coincide with probability 1e-3"
    again = await Fakes(tmp_path / "again").answers()
    assert {a.key: a.texts for a in again if method_of(a) == BASE} == base


async def test_no_ablation_and_development_openers(fakes: Fakes) -> None:
    settings = Settings(prompts=2, seeds=1, ablation_seeds=0, max_tokens=(4,), development=True)
    results = await fakes.results(settings)
    assert not results.ablation
    assert {m.answer.prompt for m in results.scored} == set(DEVELOPMENT[:2])


async def test_an_evaluation_has_the_figures_of_the_sentiment_report_on_the_same_answers(fakes: Fakes) -> None:
    answers = await fakes.answers()
    report = build_results(SETTINGS, await fakes.scored(answers), {}, 0.0)
    evaluated = {LABELS[row.condition]: row for row in summarize_run(experiment(SETTINGS), answers)}
    for row in report.comparisons[0].summaries:
        ours = evaluated[row.condition]
        assert ours.answers == row.answers
        same = {"ended", "sampled", "seconds", "distinct2"} | ({"logprob"} if row.condition != WEAK_ALONE else set())
        for key in same:
            assert ours.estimates[key] == row.estimates[key], (row.condition, key)
        assert ours.estimates["sampled"] is not None


async def test_the_sentiment_experiment_goes_on_where_it_stopped(fakes: Fakes) -> None:
    first = await fakes.answers(Settings(prompts=2, seeds=1, ablation_seeds=0, max_tokens=(4,)))
    again = await fakes.answers(Settings(prompts=3, seeds=1, ablation_seeds=0, max_tokens=(4,)))
    assert again[: len(first)] == first, "also the seconds: nothing was asked again"
    assert len(again) == len(first) * 3 // 2
