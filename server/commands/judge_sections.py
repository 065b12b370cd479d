"""The `judges` of an experiment's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from server.settings.config import AnyPairConfig, AnyRewardModelConfig
from server.settings.files import describe_validation_error
from w2s_core.config import RemotePairConfig, RemoteRewardModelConfig
from w2s_core.errors import ConfigurationError
from w2s_core.judges.config import JudgeConfig, LLMJudgeConfig, PythonJudgeConfig


class JudgeSection(BaseModel):
    """A judge, by one of these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pair: AnyPairConfig | None = None
    reward_model: AnyRewardModelConfig | None = None
    llm: LLMJudgeConfig | None = None
    python: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.model_fields_set) != 1 or self.config is None:
            raise ValueError("must have one of the keys pair, reward_model, llm and python")
        return self

    @property
    def config(self) -> JudgeConfig | None:
        """What the key configures."""
        if self.python is not None:
            return PythonJudgeConfig(self.python)
        return self.pair or self.reward_model or self.llm

    def problems(self) -> Iterator[str]:
        """Yields "key: reason" for every invalid key of a remote model."""
        remote: dict[str, Any] = {"llm": self.llm}
        if isinstance(self.reward_model, RemoteRewardModelConfig):
            remote["reward_model"] = self.reward_model
        if isinstance(self.pair, RemotePairConfig):
            remote |= {"pair.tuned": self.pair.tuned, "pair.untuned": self.pair.untuned}
        for key, model in remote.items():
            if model is not None:
                yield from (f"{key}.{problem}" for problem in model.problems())


class _Judges(BaseModel):
    judges: dict[str, JudgeSection]


def judge_configs(judges: Mapping[str, Mapping[str, Any]]) -> dict[str, JudgeConfig]:
    """The judges' configuration by name. Raises ConfigurationError, which names the key as `judges.NAME.key`."""
    try:
        sections = _Judges(judges=judges).judges  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigurationError(describe_validation_error(error)) from None
    problems = [f"judges.{name}.{problem}" for name, section in sections.items() for problem in section.problems()]
    if problems:
        raise ConfigurationError("; ".join(problems))
    return {name: section.config for name, section in sections.items() if section.config is not None}
