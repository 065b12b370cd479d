"""Runs the check of a pair: reads the data, starts the pair's models, scores, and sums up."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from w2s_core.build.pair import open_pair
from w2s_core.config import PairConfig, RemotePairConfig, WorkersConfig
from w2s_core.data_sets import DataError
from w2s_core.pairs.check import PairCheck, check, score_answers
from w2s_core.pairs.preferences import Answer


async def check_pair(
    name: str, pair: PairConfig | RemotePairConfig, answers: Sequence[Answer], workers: WorkersConfig
) -> PairCheck:
    """Checks the pair on good and bad answers, with progress on stderr.

    Raises DataError where too few answers fit the pair's context, and ConfigurationError for a pair that cannot be
    loaded.
    """
    async with open_pair(name, pair, workers) as scorer:
        with tqdm(total=len(answers), desc="scoring", unit="answer") as bar:
            scored = await score_answers(scorer, answers, bar.update)
    fitting = [s for s in scored if s is not None]
    too_long = len(scored) - len(fitting)
    if len({s.answer.good for s in fitting}) < 2:
        raise DataError(f"no good and bad answers are left, because {too_long} do not fit the pair's context.")
    return check(fitting, too_long)
