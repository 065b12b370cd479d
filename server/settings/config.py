"""The server's settings and where they come from: flags, then the environment, then one YAML file, then defaults.

An unknown key is an error that names it, so that a misspelled key cannot turn into a default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from server.settings.api_keys import KeyConfigs
from server.settings.environment import EnvironmentSource
from server.settings.files import describe_validation_error, read_yaml
from server.settings.served_models import ServedModelSettings
from w2s_core.config import (
    EngineConfig,
    LargeModelConfig,
    Limits,
    ManagedLargeModelConfig,
    PairConfig,
    ProviderConfig,
    PythonScorerConfig,
    RemoteLargeModelConfig,
    RemotePairConfig,
    RemoteRewardModelConfig,
    RewardModelConfig,
    VLLMConfig,
    WorkersConfig,
)
from w2s_core.errors import ConfigurationError
from w2s_core.guidance import SCORER_KEYS, Guidance

# The demo, served when no models are configured: a large model, and the same one guided by a pair. How its brakes and
# its sampling were chosen: docs/models.md.
DEMO: Mapping[str, Any] = {
    "large_models": {"smollm2": {"backend": "local", "model": "demo:smollm2-135m-instruct"}},
    "pairs": {
        "positive": {"tuned": "demo:reviews-positive", "untuned": "demo:reviews-negative", "prompt_template": ""}
    },
    "served_models": {
        "smollm2": {"large": "smollm2", "sampling": {"temperature": 0.3, "min_p": 0.8}},
        "smollm2-positive": {
            "large": "smollm2",
            "guidance": {
                "method": "cbs",
                "pairs": {"positive": 0.4},
                "beam_width": 2,
                "successors": 4,
                "chunk_length": 5,
                "repetition": 1.0,
                "fluency": 0.3,
                "early_stopping": True,
            },
            "sampling": {"temperature": 0.7, "min_p": 0.1},
        },
    },
}


def _by_backend(*backends: str) -> Discriminator:
    """Tells a model's configuration by its `backend`, which is one of `backends` and `local` by default."""

    def backend_of(value: Any) -> str | None:
        backend = value.get("backend", "local") if isinstance(value, Mapping) else getattr(value, "backend", "local")
        return backend if backend in backends else None

    message = "must be " + " or ".join(f"`{backend}`" for backend in backends)
    return Discriminator(backend_of, custom_error_type="backend", custom_error_message=message)


_ByBackend = _by_backend("local", "remote")
AnyLargeModelConfig = Annotated[
    Annotated[LargeModelConfig, Tag("local")]
    | Annotated[RemoteLargeModelConfig, Tag("remote")]
    | Annotated[ManagedLargeModelConfig, Tag("vllm")],
    _by_backend("local", "remote", "vllm"),
]
AnyPairConfig = Annotated[Annotated[PairConfig, Tag("local")] | Annotated[RemotePairConfig, Tag("remote")], _ByBackend]
AnyRewardModelConfig = Annotated[
    Annotated[RewardModelConfig, Tag("local")] | Annotated[RemoteRewardModelConfig, Tag("remote")], _ByBackend
]


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s*]+)$")]


class ServerConfig(BaseModel):
    """The `server` section. Times are in seconds, sizes in bytes.

    A row is one sequence that the large model samples at a time. A prompt takes W·K rows with chunk-level beam search,
    N with best_of_n, and n with eft and without guidance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    host: str = "127.0.0.1"
    port: Port = 8000
    admin_port: Port | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    api_keys: KeyConfigs = Field(default_factory=dict)
    api_keys_file: Path | None = None
    max_queued_rows: Annotated[int, Field(ge=0)] = 512
    max_rows_per_request: Annotated[int, Field(ge=1)] = 64
    max_sampled_tokens_per_request: Annotated[int, Field(ge=1)] | None = None
    request_timeout_s: Seconds = 600.0
    request_read_timeout_s: Seconds = 30.0
    write_timeout_s: Seconds = 30.0
    drain_timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    max_body_bytes: Annotated[int, Field(ge=1)] = 4 * 2**20
    max_header_bytes: Annotated[int, Field(ge=256)] = 2**14
    max_headers: Annotated[int, Field(ge=1)] = 100
    max_connections: Annotated[int, Field(ge=1)] = 2048
    cors_origins: tuple[Origin, ...] = ()
    playground: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["human", "json"] = "human"
    log_prompts: bool = False
    traces: bool = False

    @model_validator(mode="after")
    def _tls_key_needs_certificate(self) -> Self:
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key: needs tls_certificate to be set, too")
        return self


class Settings(BaseSettings):
    """All settings, validated. Build them with `load_settings`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    large_models: Annotated[dict[str, AnyLargeModelConfig], Field(min_length=1)]
    pairs: dict[str, AnyPairConfig] = Field(default_factory=dict)
    reward_models: dict[str, AnyRewardModelConfig] = Field(default_factory=dict)
    scorers: dict[str, PythonScorerConfig] = Field(default_factory=dict)
    served_models: Annotated[dict[str, ServedModelSettings], Field(min_length=1)]
    server: ServerConfig = ServerConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        checks = self._served_problems, self._scorer_problems, self._worker_problems, self._remote_problems
        if problems := [problem for check in checks for problem in check()]:
            raise ValueError("; ".join(problems))
        return self

    def _served_problems(self) -> Iterator[str]:
        for name, served in self.served_models.items():
            key = f"served_models.{name}"
            if served.large not in self.large_models:
                yield f"{key}.large: no large model is named `{served.large}` (configured: {_names(self.large_models)})"
            if served.guidance is not None:
                yield from self._guidance_problems(f"{key}.guidance", served.guidance)

    def _guidance_problems(self, key: str, guidance: Guidance) -> Iterator[str]:
        for section, name, _ in guidance.named_weights():
            configured = getattr(self, section)
            if name not in configured:
                kind = section.replace("_", " ").removesuffix("s")
                yield f"{key}.{section}.{name}: no {kind} is named `{name}` (configured: {_names(configured)})"
        for name, problem in (*guidance.problems(), *guidance.unused()):
            yield f"{key}.{name}: {problem}"
        if guidance.trace == "stream":  # its chunks have no choices, which breaks clients that have not asked for them
            yield f"{key}.trace: must be true or false; a streamed request asks for `stream` itself"
        steers = "eft" in (guidance.method, guidance.proposal)
        if guidance.method != "none" and not (guidance.pairs if steers else guidance.weights):
            needing = "proposal `eft`" if guidance.proposal == "eft" else f"method `{guidance.method}`"
            yield f"{key}.pairs: names no pair; {needing} needs at least one"
        rows = guidance.successors if guidance.method == "best_of_n" else guidance.rows
        if guidance.method in ("cbs", "best_of_n") and rows > self.server.max_rows_per_request:
            limit = self.server.max_rows_per_request
            yield f"{key}: takes {rows} rows, more than server.max_rows_per_request ({limit})"

    def _scorer_problems(self) -> Iterator[str]:
        sections = {key: getattr(self, key) for key in SCORER_KEYS}
        for key, name in [(key, name) for key, section in sections.items() for name in section]:
            first = next(other for other, section in sections.items() if name in section)
            if first != key:
                yield f"{key}.{name}: `{name}` is already a name in {first}"

    def _worker_problems(self) -> Iterator[str]:
        for field in ("threads", "max_rows", "kv_cache_gb", "heartbeat_timeout_s"):
            value = getattr(self.workers, field)
            if value != "auto" and value <= 0:
                yield f"workers.{field}: must be above 0"

    def _remote_problems(self) -> Iterator[str]:
        models: dict[str, Any] = {f"large_models.{name}": model for name, model in self.large_models.items()}
        for name, pair in self.pairs.items():
            models |= {f"pairs.{name}.tuned": pair.tuned, f"pairs.{name}.untuned": pair.untuned}
        models |= {f"reward_models.{name}": model for name, model in self.reward_models.items()}
        for key, model in models.items():
            if isinstance(model, ProviderConfig | VLLMConfig):
                yield from (f"{key}.{problem}" for problem in model.problems())

    @property
    def deciding(self) -> dict[str, Any]:
        """Everything that can change an answer, for `json.dump`: models, pairs, served models and workers."""
        return self.model_dump(mode="json", exclude={"server"})

    @property
    def fingerprint(self) -> str:
        """A short hash of `deciding`."""
        return hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()[:8]

    def engine_config(self) -> EngineConfig:
        """The configuration of `w2s_core`'s engine."""
        limits = Limits(
            max_rows=self.workers.max_rows,
            max_queued_rows=self.server.max_queued_rows,
            max_rows_per_request=self.server.max_rows_per_request,
            max_sampled_tokens_per_request=self.server.max_sampled_tokens_per_request,
            request_timeout_s=self.server.request_timeout_s,
        )
        served = {name: model.to_config() for name, model in self.served_models.items()}
        return EngineConfig(
            self.large_models,
            served,
            self.pairs,
            self.workers,
            limits,
            self.server.traces,
            self.reward_models,
            self.scorers,
        )


def load_settings(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Loads the settings from a file, the environment and `flags`, which are nested like the file.

    Without `large_models`, `pairs` and `served_models` in the file, the demo is served. Raises ConfigurationError.
    """
    file = read_yaml(path, example_key="server") if path is not None else {}
    defaults = {} if file.keys() & DEMO.keys() else dict(DEMO)

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(  # type: ignore[override]  # the other sources, passed by name, are not used
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                init_settings,
                EnvironmentSource(settings_cls),
                InitSettingsSource(settings_cls, file),
                InitSettingsSource(settings_cls, defaults),
            )

    try:
        return Loaded(**(flags or {}))
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigurationError(where + describe_validation_error(error)) from None


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
