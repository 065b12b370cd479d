"""Generation, scoring and results over fakes: the real engine and search, no torch."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fakes import FakeLargeModel, FakeScorer, letters
from w2s_core.config import ServedModelConfig
from w2s_core.engine.engine import Engine
from w2s_core.evaluation.generation import Answer, AnswerGenerator
from w2s_core.evaluation.likelihood import LikelihoodEvaluator
from w2s_core.evaluation.prompts import DEVELOPMENT, OPENERS, PREFIX
from w2s_core.evaluation.results import Results, build_results
from w2s_core.evaluation.scoring import ScoredAnswer, score_answers
from w2s_core.evaluation.settings import BASE, BEST_OF, CBS, LARGE, PAIR, WEAK, WEAK_ALONE, Settings, conditions
from w2s_core.types import TextPrompt

SETTINGS = Settings(prompts=6, seeds=2, ablation_seeds=1, max_tokens=(12,), top_k=0, temperature=1.0)


class Fakes:
    """A large model and a weak one that write a, b and blanks; the pair and the judge like the letter a."""

    def __init__(self) -> None:
        self.large = FakeLargeModel(letters(eos=0.02))
        self.weak = FakeLargeModel(letters("aaab ", eos=0.3))
        self.scorer = FakeScorer()
        models = {LARGE: self.large, WEAK: self.weak}
        self.engine = Engine(models, {PAIR: self.scorer}, {name: ServedModelConfig(name) for name in models})
        self.progress: Counter[str] = Counter()
        self.likelihood_calls: list[tuple[str, str]] = []

    async def answers(self, settings: Settings = SETTINGS) -> list[Answer]:
        generator = AnswerGenerator(self.engine, settings)
        lists = [await generator.answers(c, lambda c: self.progress.update([c.name])) for c in conditions(settings)]
        return [answer for answers in lists for answer in answers]

    async def likelihood(self, prompt: str, text: str) -> float | None:
        self.likelihood_calls.append((prompt, text))
        return -5.0 if text else None

    async def scored(self, answers: list[Answer]) -> list[ScoredAnswer]:
        judges = {
            "judge": lambda texts: [t.count("a") / len(t) for t in texts],
            "vader": lambda texts: [0.0 for _ in texts],
        }
        return await score_answers(answers, LikelihoodEvaluator(self.scorer, self.likelihood), judges, lambda: None)

    async def results(self, settings: Settings = SETTINGS) -> Results:
        return build_results(settings, await self.scored(await self.answers(settings)), {}, 0.0)


async def test_every_opener_is_answered_by_every_condition_with_every_seed() -> None:
    fakes = Fakes()
    answers = await fakes.answers()
    expected = {c.name: 6 * c.seeds for c in conditions(SETTINGS)}
    assert Counter(a.condition.name for a in answers) == expected == dict(fakes.progress)
    assert [(a.opener, a.seed) for a in answers[:3]] == [(OPENERS[0], 0), (OPENERS[0], 1), (OPENERS[1], 0)]
    assert fakes.large.open_sessions == fakes.scorer.open_sessions == 0


async def test_guidance_raises_what_the_pair_likes_and_search_beats_ranking() -> None:
    """Means over 12 answers; the gaps are many standard errors wide and the draws are seeded."""
    results = await Fakes().results()
    means = {row.condition: row.estimates["implicit"] for row in results.comparisons[0].summaries}
    base, best, cbs = (means[name] for name in (BASE, BEST_OF, CBS))
    assert base is not None and best is not None and cbs is not None  # noqa: PT018
    assert base.mean + 2 < best.mean < cbs.mean - 0.5


async def test_what_an_answer_costs() -> None:
    costs = {
        a.condition.name: a for a in await Fakes().answers(Settings(prompts=1, seeds=1, max_tokens=(12,), top_k=0))
    }
    assert costs[BASE].sampled_tokens == costs[BASE].hypothesis.length <= 12
    assert 12 < costs[CBS].sampled_tokens <= 16 * 12
    assert costs[CBS].seconds > 0


async def test_the_pair_sees_the_large_models_prompt_and_the_weak_model_only_the_opener() -> None:
    fakes = Fakes()
    seen: list[str] = []
    fakes.weak.encode = lambda prompt: seen.append(prompt.text) or (1,)  # type: ignore[method-assign,union-attr,func-returns-value]
    await fakes.answers()
    assert set(seen) == set(OPENERS[:6])
    assert set(fakes.scorer.prompts) == {TextPrompt(PREFIX + opener) for opener in OPENERS[:6]}


async def test_every_method_is_measured_by_the_same_instrument() -> None:
    fakes = Fakes()
    answers = await fakes.answers()
    for m in await fakes.scored(answers):
        y = m.answer.hypothesis
        assert m.values["implicit"] == fakes.scorer.nats(y.text, y.ended)
        assert m.values["judge"] == m.answer.judged_text.count("a") / len(m.answer.judged_text)
        if m.answer.condition.name in (BEST_OF, CBS):
            assert m.values["implicit"] == pytest.approx(y.score), "what the search maximised"
    weak = [(PREFIX + a.opener, a.hypothesis.text) for a in answers if a.condition.name == WEAK_ALONE]
    assert sorted(fakes.likelihood_calls) == sorted(weak), "the others' log-probabilities are known"


async def test_log_probability_per_token_leaves_the_ending_token_out() -> None:
    """Letters have probability 0.98 / 3 each and the end 0.02, whose logarithm would show."""
    fakes = Fakes()
    answers = await fakes.answers()
    assert any(a.hypothesis.ended for a in answers if a.condition.name == BASE)
    for m in await fakes.scored([a for a in answers if a.condition.model == LARGE and a.hypothesis.tokens]):
        assert m.values["logprob"] == pytest.approx(-1.1188, abs=1e-3)


async def test_seeds_differ_between_openers_and_agree_between_methods() -> None:
    answers = await Fakes().answers()
    base = {(a.opener, a.seed): a.hypothesis.tokens for a in answers if a.condition.name == BASE}
    assert len(set(base.values())) == len(base), "12 draws of about 12 letters coincide with probability 1e-3"
    wide = AnswerGenerator(Fakes().engine, SETTINGS)
    again = await wide.answers(conditions(SETTINGS)[0], lambda _: None)
    assert {(a.opener, a.seed): a.hypothesis.tokens for a in again} == base


async def test_no_ablation_and_development_openers() -> None:
    settings = Settings(prompts=2, seeds=1, ablation_seeds=0, max_tokens=(4,), development=True)
    results = await Fakes().results(settings)
    assert not results.ablation
    assert {m.answer.opener for m in results.scored} == set(DEVELOPMENT[:2])
