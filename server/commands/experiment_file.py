"""The file and the flags of `w2s eval run`, and the experiment that they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from server.settings.files import describe_validation_error, read_yaml
from w2s_core.errors import ConfigurationError
from w2s_core.evaluation.client import OWN_FIELDS
from w2s_core.evaluation.experiment import Condition, Experiment, grid, leaves, put
from w2s_core.evaluation.prompt_files import read_prompts


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
    """The file's keys. `seeds` is the answers per prompt, `sampling` holds for all conditions."""

    prompts: Path | None = None
    conditions: dict[str, ConditionSection] = Field(default_factory=dict)
    sampling: dict[str, Any] = Field(default_factory=dict)
    seeds: Annotated[int, Field(ge=1)] = 1
    baseline: str | None = None
    concurrency: Annotated[int, Field(ge=1)] = 4
    system: str | None = None
    judges: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _sampling = field_validator("sampling")(_check_sampling)


def load_file(path: Path | None, flags: Mapping[str, Any]) -> ExperimentFile:
    """The file with `flags` over it, those of them that are not None; `prompts` is relative to the file.

    Raises ConfigurationError.
    """
    content = read_yaml(path, example_key="prompts") if path is not None else {}
    if path is not None and isinstance(content.get("prompts"), str):
        content["prompts"] = path.parent / content["prompts"]
    try:
        return ExperimentFile(**content | {key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigurationError(where + describe_validation_error(error)) from None


def guidance_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Guidance from `KEY=VALUE[,VALUE...]`, where a key may be `pairs.positive`. Raises ConfigurationError."""
    guidance: dict[str, Any] = {}
    for flag in flags:
        key, equals, text = flag.partition("=")
        try:
            values = [yaml.safe_load(value) for value in text.split(",")]
        except yaml.YAMLError:
            values = []
        if not (key and equals and values):
            raise ConfigurationError(f"--guidance: `{flag}` is not KEY=VALUE or KEY=VALUE,VALUE.")
        put(guidance, key.split("."), values if len(values) > 1 else values[0])
    return guidance


def make_experiment(
    file: ExperimentFile, models: Sequence[str], guidance: Mapping[str, Any], max_tokens: int | None, limit: int | None
) -> Experiment:
    """The experiment of the file and of the flags `--model`, `--guidance`, `--max-tokens` and `--limit`.

    Raises ConfigurationError.
    """
    if file.prompts is None:
        raise ConfigurationError("prompts: name a file, by --prompts or in the experiment's file.")
    sections = _of_models(models, guidance) if models else _with_guidance(file.conditions, guidance)
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
    return Experiment(read_prompts(file.prompts, limit), conditions, baseline, file.system, file.judges)


def _expanded(name: str, guidance: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    if guidance is None:
        yield name, None
    else:
        yield from grid(name, guidance)


def _of_models(models: Sequence[str], guidance: Mapping[str, Any]) -> dict[str, ConditionSection]:
    """A condition for each model. The first of several is the baseline, and stays as it is served."""
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
