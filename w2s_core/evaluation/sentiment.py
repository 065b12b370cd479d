"""Runner of the sentiment experiment: generates answers, scores them and builds the results."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from tqdm import tqdm

from w2s_core.build.engine import build_engine
from w2s_core.demo.data import splits
from w2s_core.demo.fetch import say
from w2s_core.evaluation.generation import Answer, AnswerGenerator, Progress, behind_bos
from w2s_core.evaluation.judge import SentimentJudge, Vader, auc
from w2s_core.evaluation.likelihood import open_evaluator, source
from w2s_core.evaluation.results import Results, build_results
from w2s_core.evaluation.scoring import Judge, score_answers
from w2s_core.evaluation.settings import Condition, Settings, conditions, engine_config
from w2s_core.text.tokenizer import HFTokenizer

_STEP_COST_ROWS = 4  # fixed cost of a decode step, in rows: makes the bar's remaining time realistic
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left"


async def run(settings: Settings) -> Results:
    """Runs the experiment, with progress on stderr. The first run fetches the demo models and sentences."""
    start = time.perf_counter()
    judges, aucs = judges_and_aucs()
    answers = await _generate(settings)
    say("loading the models again, in float32, to score the answers")
    async with open_evaluator(settings) as evaluator:
        with tqdm(total=len(answers), desc="scoring", unit="answer") as bar:
            scored = await score_answers(answers, evaluator, judges, bar.update)
    return build_results(settings, scored, aucs, time.perf_counter() - start)


def judges_and_aucs() -> tuple[dict[str, Judge], dict[str, float]]:
    """The judges by metric key, and their AUC on the test sentences. Neither was trained on the pair's sentences."""
    _, judging, testing = splits()
    judges: dict[str, Judge] = {"judge": SentimentJudge(judging), "vader": Vader()}
    texts = [sentence.text for sentence in testing]
    return judges, {key: auc(judge(texts), testing) for key, judge in judges.items()}


async def _generate(settings: Settings) -> list[Answer]:
    all_conditions = conditions(settings)
    answers: list[Answer] = []
    async with _answer_generator(settings) as generator:
        with _generation_bar(all_conditions, len(settings.openers)) as progress:
            for condition in all_conditions:
                answers += await generator.answers(condition, progress)
    return answers


@asynccontextmanager
async def _answer_generator(settings: Settings) -> AsyncIterator[AnswerGenerator]:
    engine = build_engine(engine_config(settings))
    weak_prompt = behind_bos(HFTokenizer(source(settings.tuned)))
    say("loading the models")
    async with engine:
        yield AnswerGenerator(engine, settings, weak_prompt)


@contextmanager
def _generation_bar(all_conditions: Sequence[Condition], openers: int) -> Iterator[Progress]:
    total = sum(_cost(condition) * condition.seeds * openers for condition in all_conditions)
    with tqdm(total=total, bar_format=_BAR) as bar:

        def progress(condition: Condition) -> None:
            bar.set_description(f"generating {condition.name}, {condition.max_tokens} tokens", refresh=False)
            bar.update(_cost(condition))

        yield progress


def _cost(condition: Condition) -> int:
    return (condition.rows + _STEP_COST_ROWS) * condition.max_tokens
