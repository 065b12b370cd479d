"""Writes answers as AlpacaEval reads them: `alpaca_eval --model_outputs alpaca_eval/CONDITION/model_outputs.json`.

https://github.com/tatsu-lab/alpaca_eval
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from w2s_core.evaluation.run import Evaluation

FOLDER, FILE = "alpaca_eval", "model_outputs.json"
_UNUSUAL = re.compile(r"[^\w.,=+ -]")


def write_alpaca_eval(evaluation: Evaluation) -> list[Path]:
    """Writes a file for each condition into the evaluation's folder, with the first seed's answer to every prompt.

    AlpacaEval knows no conversations: of prompts with several turns the files have the first.
    """
    prompts = {prompt.id: prompt for prompt in evaluation.experiment.prompts}
    paths = []
    for condition, name in folder_names([c.name for c in evaluation.experiment.conditions]).items():
        outputs = [
            {
                "dataset": prompts[answer.prompt].group or "w2s",
                "instruction": prompts[answer.prompt].turns[0],
                "output": prompts[answer.prompt].answer_prefix + answer.texts[0],
                "generator": condition,
            }
            for answer in evaluation.answers
            if answer.condition == condition and answer.seed == 0
        ]
        paths.append(evaluation.folder / FOLDER / name / FILE)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_text(json.dumps(outputs, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return paths


def folder_names(conditions: list[str]) -> dict[str, str]:
    """A folder's name for each condition: its own, where that is a plain one, and no two the same."""
    names: dict[str, str] = {}
    for condition in conditions:
        plain = _UNUSUAL.sub("_", condition).strip(". ") or "_"
        same = sum(name.casefold() == plain.casefold() for name in names.values())
        names[condition] = f"{plain} ({same + 1})" if same else plain
    return names
