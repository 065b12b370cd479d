"""Runs the check of a pair: reads the data, starts the pair's models, scores, and sums up."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from w2s_core.build.pair import open_pair
from w2s_core.config import PairConfig, RemotePairConfig, WorkersConfig
from w2s_core.json_lines import DataError
from w2s_core.pairs.check import PairCheck, check, score_answers
from w2s_core.pairs.preferences import read_preferences


async def run_check(name: str, pair: PairConfig | RemotePairConfig, data: Path, workers: WorkersConfig) -> PairCheck:
    """Checks the pair on the preference data in `data`, with progress on stderr.

    Raises DataError, and ConfigurationError for a pair that cannot be loaded.
    """
    answers = read_preferences(data)
    async with open_pair(name, pair, workers) as scorer:
        with tqdm(total=len(answers), desc="scoring", unit="answer") as bar:
            scored = await score_answers(scorer, answers, bar.update)
    fitting = [s for s in scored if s is not None]
    if len({s.answer.good for s in fitting}) < 2:
        raise DataError(f"{data}: no good and bad answers are left, because {len(scored) - len(fitting)} do not fit.")
    return check(fitting, len(scored) - len(fitting))
