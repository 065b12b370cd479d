"""Runs the judges of an evaluation one after another, and publishes what they find."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_core.evaluation.run import Evaluation, Judgements, Judging
from w2s_core.judges import tables
from w2s_core.judges.alpaca_eval import write_alpaca_eval
from w2s_core.judges.judge import Judge
from w2s_core.judges.judging import Judgement, cases, judge_all, open_judgements
from w2s_core.judges.page import write_page
from w2s_core.judges.win_rates import Findings, findings


def judging(judges: Sequence[Judge], concurrency: int) -> Judging:
    """Judges all answers, `concurrency` at a time, and writes AlpacaEval's files and the page.

    Judges start one by one, so that only one's models are loaded. Without judges the page has the answers and costs.
    """

    async def judge_evaluation(evaluation: Evaluation) -> Judgements:
        write_alpaca_eval(evaluation)
        found: list[Findings] = []
        every: list[Judgement] = []
        with open_judgements(evaluation.folder) as log:
            for judge in judges:
                judgements = await judge_all(judge, cases(evaluation, judge.pairwise), log, concurrency)
                found.append(findings(evaluation, judge.name, judge.pairwise, judgements))
                every += judgements
        write_page(evaluation, found, every)
        return Judgements(tables.as_json(found), tables.as_text(found, evaluation.experiment.baseline))

    return judge_evaluation
