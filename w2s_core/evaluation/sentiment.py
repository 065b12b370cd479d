"""Runner of the sentiment experiment: a preset of `w2s eval run` whose answers are scored by judges of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from w2s_core.config import EngineConfig
from w2s_core.demo.data import splits
from w2s_core.demo.fetch import say
from w2s_core.evaluation.client import CompletionPrompt
from w2s_core.evaluation.folder import open_folder
from w2s_core.evaluation.judge import SentimentJudge, Vader, auc
from w2s_core.evaluation.likelihood import open_evaluator, source
from w2s_core.evaluation.records import AnswerRecord, EvalPrompt
from w2s_core.evaluation.results import Results, build_results
from w2s_core.evaluation.run import Server, answered
from w2s_core.evaluation.scoring import Judge, score_answers
from w2s_core.evaluation.settings import WEAK, Settings, engine_config, experiment
from w2s_core.text.tokenizer import HFTokenizer


async def run(settings: Settings, path: Path, serve: Callable[[EngineConfig], Server]) -> Results:
    """Runs the experiment, with progress on stderr. The first run fetches the demo models and sentences.

    `serve` makes a server of the models. The answers are in the folder `path`, as those of any evaluation. Raises
    ConfigurationError for a folder that has others.
    """
    start = time.perf_counter()
    judges, aucs = judges_and_aucs()
    answers = await generate(settings, path, serve)
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


async def generate(settings: Settings, path: Path, serve: Callable[[EngineConfig], Server]) -> Sequence[AnswerRecord]:
    """The answers of every condition, of which the folder keeps those of earlier runs."""
    every = experiment(settings)
    weak = behind_bos(HFTokenizer(source(settings.tuned)))
    prompts = {condition.name: weak for condition in every.conditions if condition.model == WEAK}
    with open_folder(path, every) as folder:
        return await answered(every, folder, serve(engine_config(settings)), settings.concurrency, prompts)


def behind_bos(tokenizer: HFTokenizer) -> CompletionPrompt:
    """Makes prompts of BOS and an opener, as the small model was trained on; its tokenizer does not add BOS."""

    def prompt(prompt: EvalPrompt) -> Sequence[int]:
        return [*tokenizer.empty_prompt, *tokenizer.encode(prompt.answer_prefix, special_tokens=False)]

    return prompt
