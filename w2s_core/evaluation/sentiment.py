"""The whole of `w2s eval sentiment`: engine, judges, instrument, results."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from tqdm import tqdm

from w2s_core.build.engine import build_engine
from w2s_core.demo.data import splits
from w2s_core.demo.fetch import say
from w2s_core.evaluation.experiment import Answer, Interview, Progress, behind_bos
from w2s_core.evaluation.instrument import open_instrument, source
from w2s_core.evaluation.judge import SentimentJudge, Vader, auc
from w2s_core.evaluation.measuring import Judge, measure
from w2s_core.evaluation.results import Results, conclude
from w2s_core.evaluation.settings import Condition, Settings, conditions, engine_config
from w2s_core.text.tokenizer import HFTokenizer

_STEP_COST_ROWS = 4  # a step with one row takes about as long as a quarter of one with 16: keeps the time left honest
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"


async def run(settings: Settings) -> Results:
    """Generates, then measures; progress on stderr. Fetches the demo's models and sentences the first time."""
    begin = time.perf_counter()
    judges, aucs = judges_and_aucs()
    answers = await _generate(settings)
    say("loading the models once more, in float32, to measure")
    async with open_instrument(settings) as instrument:
        with tqdm(total=len(answers), desc="measuring", unit="answer") as bar:
            measured = await measure(answers, instrument, judges, bar.update)
    return conclude(settings, measured, aucs, time.perf_counter() - begin)


def judges_and_aucs() -> tuple[dict[str, Judge], dict[str, float]]:
    """The judges by metric, and their AUC on the test sentences. Neither sees a sentence that the pair learnt from."""
    _, judging, testing = splits()
    judges: dict[str, Judge] = {"judge": SentimentJudge(judging), "vader": Vader()}
    texts = [sentence.text for sentence in testing]
    return judges, {key: auc(judge(texts), testing) for key, judge in judges.items()}


async def _generate(settings: Settings) -> list[Answer]:
    plan = conditions(settings)
    answers: list[Answer] = []
    async with _interview(settings) as interview:
        with _generation_bar(plan, len(settings.openers)) as progress:
            for condition in plan:
                answers += await interview.answers(condition, progress)
    return answers


@asynccontextmanager
async def _interview(settings: Settings) -> AsyncIterator[Interview]:
    engine = build_engine(engine_config(settings))
    weak_prompt = behind_bos(HFTokenizer(source(settings.tuned)))
    say("loading the models")
    async with engine:
        yield Interview(engine, settings, weak_prompt)


@contextmanager
def _generation_bar(plan: Sequence[Condition], openers: int) -> Iterator[Progress]:
    total = sum(_cost(condition) * condition.seeds * openers for condition in plan)
    with tqdm(total=total, bar_format=_BAR) as bar:

        def progress(condition: Condition) -> None:
            bar.set_description(f"asking {condition.name}", refresh=False)
            bar.update(_cost(condition))

        yield progress


def _cost(condition: Condition) -> int:
    return condition.rows + _STEP_COST_ROWS
