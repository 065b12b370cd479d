"""The data of a training: answers to train on, and answers that are held out to check the pair with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from w2s_core.data_sets import DataError
from w2s_core.demo.fetch import say
from w2s_core.pairs.preferences import Answer, read_answers, read_preferences
from w2s_core.training.settings import TrainingSettings

_FEW_PROMPTS = 20  # with fewer different prompts, answers and not prompts are held out


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The answers to train on, those to check the pair with (none where they are not labelled), and their SHA-256."""

    training: Sequence[Answer]
    held_out: Sequence[Answer]
    digest: str


def read_data(settings: TrainingSettings) -> TrainingData:
    """Reads `settings.data`, of which empty answers are left out, and `settings.check_data`. Raises DataError."""
    answers = _without_empty(read_answers(settings.data, settings.split), settings.data)
    if settings.method == "dpo" and any(answer.partner is None for answer in answers):
        raise DataError(f"{settings.data}: --method dpo needs comparisons: records with `chosen` and `rejected`.")
    if settings.check_data is not None:
        held_out = read_preferences(settings.check_data, settings.split)
        return TrainingData(answers, held_out, _digest([*answers, *held_out]))
    training, held_out = split(answers, settings.held_out, settings.seed) if answers[0].labelled else (answers, [])
    if not _both_kinds(training):
        raise DataError(f"{settings.data}: there are too few answers to hold {settings.held_out:.0%} of them out.")
    if not _both_kinds(held_out):  # they would tell nothing
        training, held_out = answers, []
    return TrainingData(training, held_out, _digest(answers))


def _without_empty(answers: Sequence[Answer], source: str) -> list[Answer]:
    """The answers less those without any text, and less the partners of those. Says how many are left out."""
    empty = [answer for answer in answers if not answer.text.strip()]
    if not empty:
        return list(answers)
    comparisons = {answer.partner for answer in empty} - {None}
    left = [answer for answer in answers if answer.text.strip() and answer.partner not in comparisons]
    if not _both_kinds(left):
        raise DataError(f"{source}: without the {len(empty)} empty answers too few are left to train on.")
    what = "comparisons with an empty answer" if comparisons else "empty answers"
    say(f"left out: {what}, {len(comparisons) or len(empty)} of them; the first is {empty[0].place}")
    return left


def split(answers: Sequence[Answer], share: float, seed: int) -> tuple[list[Answer], list[Answer]]:
    """The answers without, and those of, a random `share` of the prompts, so that no prompt is on both sides.

    Where there are few prompts or none, of the answers; the two of a comparison stay together.
    """
    prompts = [repr(answer.prompt) for answer in answers]  # conversations cannot be hashed
    by_prompt = len(set(prompts)) >= _FEW_PROMPTS
    single = [f"answer {i}" if a.partner is None else f"comparison {a.partner}" for i, a in enumerate(answers)]
    keys = prompts if by_prompt else single
    groups = list(dict.fromkeys(keys))
    chosen = set(random.Random(seed).sample(groups, round(share * len(groups))))
    sides: tuple[list[Answer], list[Answer]] = ([], [])
    for key, answer in zip(keys, answers, strict=True):
        sides[key in chosen].append(answer)
    return sides


def _both_kinds(answers: Sequence[Answer]) -> bool:
    return bool(answers) and (not answers[0].labelled or len({answer.good for answer in answers}) == 2)


def _digest(answers: Sequence[Answer]) -> str:
    content = "\n".join(repr((answer.prompt, answer.text, answer.good)) for answer in answers)
    return hashlib.sha256(content.encode()).hexdigest()
