"""The file and the flags of `w2s eval run`, and the experiment that they mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from server.settings.files import describe_validation_error, parse_yaml, read_yaml
from w2s_core import evaluation
from w2s_core.data_sets import has_splits
from w2s_core.errors import ConfigurationError
from w2s_core.evaluation.client import OWN_FIELDS
from w2s_core.evaluation.experiment import Condition, Experiment, grid, leaves, put
from w2s_core.evaluation.prompt_files import read_prompts

PRESETS = {path.stem: path for path in (Path(evaluation.__file__).parent / "presets").glob("*.yaml")}
"""The files of the experiments that come with the package, by name."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_sampling(sampling: dict[str, Any]) -> dict[str, Any]:
    for key in sampling:
        if key in OWN_FIELDS:
            raise ValueError(f"`{key}` is no sampling parameter")
    return sampling


class ConditionSection(_Section):
    """A condition: a served model, guidance in which any value may be a list (a grid), and sampling parameters."""

    model: str
    guidance: dict[str, Any] | None = None
    sampling: dict[str, Any] = Field(default_factory=dict)

    _sampling = field_validator("sampling")(_check_sampling)


class ExperimentFile(_Section):
    """The file's keys. `seeds` is the answers per prompt, `sampling` holds for all conditions.

    `prompts`, `split`, `chat`, `limit`: see `read_prompts`.
    """

    prompts: str | Path | None = None
    split: str = "train"
    chat: bool = True
    limit: Annotated[int, Field(ge=1)] | None = None
    conditions: dict[str, ConditionSection] = Field(default_factory=dict)
    sampling: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[int, Field(ge=1)] = 1
    baseline: str | None = None
    concurrency: Annotated[int, Field(ge=1)] = 4
    system: str | None = None
    judges: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _sampling = field_validator("sampling")(_check_sampling)


def preset_needs(name: Path | None, experiment: Experiment) -> str:
    """What a preset asks of the server, as the end of a message; nothing for another file."""
    if name is None or name.exists() or str(name) not in PRESETS:
        return ""
    models = sorted({f"`{condition.model}`" for condition in experiment.conditions})
    pairs = sorted({f"`{pair}`" for c in experiment.conditions for pair in (c.guidance or {}).get("pairs", {})})
    return (
        f" The preset {name} asks for a served model named {', '.join(models)} and a pair named {', '.join(pairs)}: "
        f"see deploy/tasks/{name}.yaml."
    )


def load_file(path: Path | None, flags: Mapping[str, Any]) -> ExperimentFile:
    """The file, or the preset of that name, with `flags` over it, those of them that are not None.

    `prompts` is relative to the file, if it is there, else the id of a data set. Raises ConfigurationError.
    """
    if path is not None and not path.exists() and str(path) in PRESETS:
        path = PRESETS[str(path)]
    if path is not None and not path.suffix and not path.exists():
        raise ConfigurationError(f"{path}: no such file, nor a preset; those are {', '.join(sorted(PRESETS))}.")
    content = read_yaml(path, example_key="prompts") if path is not None else {}
    _check_plain(content, path)
    prompts = content.get("prompts")
    if path is not None and isinstance(prompts, str) and (path.parent / prompts).exists():
        content["prompts"] = path.parent / prompts
    try:
        file = ExperimentFile(**content | {key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigurationError(where + describe_validation_error(error)) from None
    own = (
        content.get("split", "train") != "train" and flags.get("prompts") is None
    )  # a preset's split is for its data set
    if (own or flags.get("split") is not None) and file.prompts is not None and not has_splits(file.prompts):
        raise ConfigurationError("split: only a data set has splits, not a file of prompts.")
    return file


def _check_plain(content: Mapping[str, Any], path: Path | None) -> None:
    """Raises ConfigurationError for YAML's values that JSON does not have, such as dates and infinite numbers."""
    for keys, value in leaves(content):
        for item in value if isinstance(value, list) else [value]:
            finite = not isinstance(item, float) or math.isfinite(item)
            if not (finite and isinstance(item, str | int | float | dict | list | None)):
                raise ConfigurationError(f"{path}: {'.'.join(keys)}: `{item}` is not a value of JSON; quote a text.")


def guidance_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Guidance from `KEY=VALUE[,VALUE...]`, where a key may be `pairs.positive`. Raises ConfigurationError."""
    guidance: dict[str, Any] = {}
    for flag in flags:
        key, equals, text = flag.partition("=")
        try:
            values = [parse_yaml(value) for value in text.split(",")]
        except yaml.YAMLError:
            values = []
        if not (key and equals and values):
            raise ConfigurationError(f"--guidance: `{flag}` is not KEY=VALUE or KEY=VALUE,VALUE.")
        put(guidance, key.split("."), values if len(values) > 1 else values[0])
    return guidance


def make_experiment(
    file: ExperimentFile,
    models: Sequence[str],
    guidance: Mapping[str, Any],
    max_tokens: int | None,
    setup: Mapping[str, Any],
) -> Experiment:
    """The experiment of the file and of the flags `--model`, `--guidance` and `--max-tokens`.

    `setup`: see `Experiment`. Raises ConfigurationError.
    """
    if file.prompts is None:
        raise ConfigurationError("prompts: name a file, by --prompts or in the experiment's file.")
    sections = _of_models(models, guidance) if models else _with_guidance(file.conditions, guidance)
    if guidance and not any(section.guidance is not None for section in sections.values()):
        raise ConfigurationError("--guidance: no condition of the file has guidance that it could change.")
    if not sections:
        raise ConfigurationError("conditions: name a served model by --model, or conditions in the experiment's file.")
    sampling = file.sampling
    limits = {"max_tokens": max_tokens} if max_tokens is not None else {}
    conditions = [
        Condition(name, section.model, chosen, {**sampling, **section.sampling, **limits}, file.seeds)
        for key, section in sections.items()
        for name, chosen in _expanded(key, section.guidance)
    ]
    baseline = file.baseline or conditions[0].name
    prompts = read_prompts(file.prompts, file.limit, split=file.split, chat=file.chat)
    return Experiment(prompts, conditions, baseline, file.system, file.judges, setup)


def _expanded(name: str, guidance: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    if guidance is None:
        yield name, None
    else:
        yield from grid(name, guidance)


def _of_models(models: Sequence[str], guidance: Mapping[str, Any]) -> dict[str, ConditionSection]:
    """A condition for each model. The first of several is the baseline, and stays as it is served."""
    if twice := {name for name in models if models.count(name) > 1}:
        raise ConfigurationError(
            f"--model: `{min(twice)}` is there twice; several guidances of one model are conditions of a file."
        )
    guided = models[1:] or models
    return {
        name: ConditionSection(model=name, guidance=dict(guidance) if guidance and name in guided else None)
        for name in models
    }


def _with_guidance(
    sections: Mapping[str, ConditionSection], guidance: Mapping[str, Any]
) -> Mapping[str, ConditionSection]:
    """The file's conditions, with the flags over the guidance of those that have any."""
    return {
        name: section.model_copy(update={"guidance": _over(section.guidance, guidance)})
        if section.guidance is not None
        else section
        for name, section in sections.items()
    }


def _over(guidance: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path, value in (*leaves(guidance), *leaves(flags)):
        put(merged, path, value)
    return merged
