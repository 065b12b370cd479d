"""Configuration of judges as frozen dataclasses (see `w2s_core.config`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from w2s_core.config import PairConfig, ProviderConfig, RemotePairConfig, RemoteRewardModelConfig, RewardModelConfig

_FORBID: dict[str, str] = {"extra": "forbid"}
_CALL_TIMEOUT_S = 300.0  # a model that thinks before its verdict takes minutes
PLACEHOLDERS = ("{prompt}", "{answer_a}", "{answer_b}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMJudgeConfig:
    """An LLM that compares two answers, behind any OpenAI-compatible API.

    `base_url` has its path (`https://host/v1`). `api_key_env`: the environment variable that holds the API key.
    `prompt`: a template with PLACEHOLDERS, None = ours; its verdicts are [[A]], [[B]] and [[C]] for a tie. `max_tokens`
    and `temperature` are sent as they are, None = not at all.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    base_url: str
    model: str
    api_key_env: str | None = None
    prompt: str | None = None
    max_tokens: int | None = 1024
    temperature: float | None = 0.0

    @property
    def provider(self) -> ProviderConfig:
        """What calls to the API need."""
        return ProviderConfig(
            base_url=self.base_url, model=self.model, api_key_env=self.api_key_env, call_timeout_s=_CALL_TIMEOUT_S
        )

    def problems(self) -> Iterator[str]:
        """Yields "key: reason" for every invalid key."""
        yield from self.provider.problems()
        missing = [name for name in PLACEHOLDERS if self.prompt is not None and name not in self.prompt]
        if missing:
            yield f"prompt: must have {', '.join(missing)}"


@dataclass(frozen=True, slots=True)
class PythonJudgeConfig:
    """A function of one's own. `python`: "package.module:function", which takes a prompt and an answer as texts and
    returns a number, higher is better."""

    python: str


JudgeConfig: TypeAlias = (
    PairConfig | RemotePairConfig | RewardModelConfig | RemoteRewardModelConfig | LLMJudgeConfig | PythonJudgeConfig
)
