"""An experiment: prompts × conditions × seeds. A condition is a served model with guidance and sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from w2s_core.errors import ConfigurationError
from w2s_core.evaluation.records import EvalPrompt
from w2s_core.types import Guidance

_SEED_STRIDE = (
    1_000_003  # no two prompts share a seed; all conditions do, which reduces the variance of their differences
)
_STEP_COST_ROWS = 4  # fixed cost of a decode step, in rows
_SHOWN = 80  # characters of a value in a message
_LIKELY_TOKENS = 256  # of an answer without a limit; only the remaining time is estimated by it


@dataclass(frozen=True, slots=True)
class Condition:
    """An experimental condition: a served model, and what its requests have in `guidance` and as sampling parameters.

    Guidance None leaves the served model's own. Both are as the API takes them; `seeds` is the answers per prompt.
    """

    name: str
    model: str
    guidance: Mapping[str, Any] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1

    @property
    def cost(self) -> int:
        """About what an answer takes, in rows times tokens: it weights conditions in the time that is left.

        The rows are those that `guidance` tells, one where it tells none.
        """
        tokens = self.sampling.get("max_tokens") or self.sampling.get("max_completion_tokens") or _LIKELY_TOKENS
        try:
            return (_rows(self.guidance or {"method": "none"}) + _STEP_COST_ROWS) * int(tokens)
        except (TypeError, ValueError):  # the server says what is wrong with it
            return _STEP_COST_ROWS


def _rows(guidance: Mapping[str, Any]) -> int:
    """Sequences that are sampled at once for one answer."""
    known = Guidance(**{key: guidance[key] for key in ("method", "beam_width", "successors") if key in guidance})
    if known.method in ("none", "eft"):
        return 1
    return int(known.successors if known.method == "best_of_n" else known.rows)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything that decides the answers, and the `baseline` and the `judges` (name → options) that compare them.

    `system` is a system message in front of every chat. `setup` is what else must be the same for two answers to
    belong together, such as the models behind the served names.
    """

    prompts: Sequence[EvalPrompt]
    conditions: Sequence[Condition]
    baseline: str
    system: str | None = None
    judges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    setup: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [condition.name for condition in self.conditions]
        if not names:
            raise ConfigurationError("conditions: there are none.")
        if self.baseline not in names:
            raise ConfigurationError(
                f"baseline: no condition is named `{self.baseline}` (there are: {', '.join(names)})."
            )
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigurationError(f"conditions: two are named `{min(twice)}`.")

    @property
    def tasks(self) -> list[Task]:
        """Every answer of the experiment, prompt by prompt, so that all conditions advance together."""
        repetitions = range(max(condition.seeds for condition in self.conditions))
        return [
            Task(condition, prompt, seed, seed * _SEED_STRIDE + index)
            for index, prompt in enumerate(self.prompts)
            for seed in repetitions
            for condition in self.conditions
            if seed < condition.seeds
        ]

    def as_json(self) -> dict[str, Any]:
        """All but the prompts, for `json.dump`."""
        return {
            "system": self.system,
            "baseline": self.baseline,
            "conditions": {
                c.name: {
                    "model": c.model,
                    "guidance": None if c.guidance is None else dict(c.guidance),
                    "sampling": dict(c.sampling),
                    "seeds": c.seeds,
                }
                for c in self.conditions
            },
            "judges": dict(self.judges),
            "setup": dict(self.setup),
        }


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to ask for. `seed` counts the answers to the prompt; `request_seed` is the seed of its request."""

    condition: Condition
    prompt: EvalPrompt
    seed: int
    request_seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """As of the answer's record."""
        return self.condition.name, self.prompt.id, self.seed


def grid(name: str, guidance: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Expands values that are lists: yields a name and guidance for each combination, as `NAME beam_width=2`.

    Lists may be anywhere in the guidance; a key inside of another is named `pairs.positive`. Raises ConfigurationError
    for an empty list.
    """
    found = list(leaves(guidance))
    if empty := [path for path, value in found if value == []]:
        raise ConfigurationError(f"guidance.{'.'.join(empty[0])}: an empty list is no value, and makes no grid.")
    choices = [value if isinstance(value, list) else [value] for _, value in found]
    for values in product(*choices):
        chosen = [
            f"{'.'.join(path)}={value}"
            for (path, options), value in zip(found, values, strict=True)
            if isinstance(options, list)
        ]
        expanded: dict[str, Any] = {}
        for (path, _), value in zip(found, values, strict=True):
            put(expanded, path, value)
        yield " ".join([name, ", ".join(chosen)]).rstrip(), expanded


def put(mapping: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a value in nested mappings, and makes those that are missing. Raises ConfigurationError."""
    *parents, last = path
    for key in parents:
        mapping = mapping.setdefault(key, {})
        if not isinstance(mapping, dict):
            raise ConfigurationError(f"guidance.{'.'.join(path)}: `{key}` has a value already, and no keys.")
    mapping[last] = value


def leaves(mapping: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The paths and values in nested mappings; an empty mapping is a value."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def differences(saved: Mapping[str, Any], experiment: Experiment, answered: Container[str]) -> Iterator[str]:
    """The dotted keys in which an experiment's saved JSON and `experiment` contradict each other, with the values.

    Only conditions that are `answered` count. New conditions, more seeds, and another baseline or other judges are no
    contradiction: they leave the answers as they are.
    """
    ours = json.loads(json.dumps(experiment.as_json()))
    for name, before in saved["conditions"].items():
        key, now = f"conditions.{name}", ours["conditions"].get(name)
        if name not in answered:
            continue
        if now is None:
            yield f"{key} (is missing now)"
            continue
        yield from _different(f"{key}.", before | {"seeds": None}, now | {"seeds": None})
        if now["seeds"] < before["seeds"]:
            yield changed(f"{key}.seeds", before["seeds"], now["seeds"])
    yield from _different("", {"system": saved["system"]}, {"system": ours["system"]})
    yield from _different("", saved["setup"], ours["setup"])


def changed(key: str, before: Any, now: Any) -> str:
    """A setting with its old and its new value, for a message."""
    return f"{key} (was {_shown(before)}, is {_shown(now)})"


def _shown(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _different(prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    flat, flat_now = ({".".join(path): value for path, value in leaves(m) if value != {}} for m in (before, now))
    for key in {**flat, **flat_now}:
        if flat.get(key) != flat_now.get(key):
            yield changed(prefix + key, flat.get(key), flat_now.get(key))
