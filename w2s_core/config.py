"""What can be served, as frozen dataclasses; `server/settings/config.py` reads them from YAML, environment and flags.

`__pydantic_config__` lets a reader that uses pydantic refuse unknown keys; nothing here needs pydantic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from w2s_core.types import Guidance

ToolFormatName: TypeAlias = Literal["auto", "hermes", "llama3_json", "mistral"]
_FORBID: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class LargeModelConfig:
    """`model`: a folder, a hub id, or "demo:NAME". `trust_remote_code` runs Python code from the model's folder.
    `devices`: those of `workers.devices` that hold it; None = all. `tool_format`: how it writes calls of tools; "auto"
    = as its chat template shows."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    model: str
    backend: Literal["local"] = "local"
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None
    tool_format: ToolFormatName = "auto"


@dataclass(frozen=True, slots=True)
class PairConfig:
    """`prompt_template`: None = the pair's own chat template (chat) or the raw prompt (completions); a string with
    `{prompt}` replaced literally; "" = the answer is scored by itself."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    tuned: str
    untuned: str
    backend: Literal["local"] = "local"
    prompt_template: str | None = None
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """Who answers for a model that runs elsewhere; times in seconds.

    `base_url`: one or several, each with its path (`http://host:8000/v1`); several serve the same model.
    `model`: what the provider calls it. `api_key_env`: the environment variable that holds the key.
    `call_timeout_s` bounds one attempt, its whole answer included. `max_concurrency`: calls under way at once.
    `max_retries`: attempts after the first, those at another base_url included.
    After `breaker_failures` failed calls in a row a base_url is left alone for `breaker_cooldown_s`, then probed.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    base_url: str | tuple[str, ...]
    model: str
    api_key_env: str | None = None
    connect_timeout_s: float = 5.0
    call_timeout_s: float = 120.0
    max_concurrency: int = 64
    max_retries: int = 3
    breaker_failures: int = 5
    breaker_cooldown_s: float = 5.0

    @property
    def base_urls(self) -> tuple[str, ...]:
        """Each once, without a slash at the end."""
        urls = (self.base_url,) if isinstance(self.base_url, str) else self.base_url
        return tuple(dict.fromkeys(url.rstrip("/") for url in urls))

    def problems(self) -> Iterator[str]:
        """What cannot be served, one `key: reason` each; never a value, which may hold a secret."""
        if not self.base_urls:
            yield "base_url: names no address"
        for url in self.base_urls:
            if (reason := _problem_of_url(url)) is not None:
                yield f"base_url: {reason}"
        for key in ("connect_timeout_s", "call_timeout_s", "breaker_cooldown_s"):
            if not 0 < getattr(self, key) < float("inf"):
                yield f"{key}: must be above 0"
        for key, least in (("max_concurrency", 1), ("max_retries", 0), ("breaker_failures", 1)):
            if getattr(self, key) < least:
                yield f"{key}: must be at least {least}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModelConfig(ProviderConfig):
    """A model behind an OpenAI-compatible completion API that tells log-probabilities.

    `flavor`: "vllm" takes and gives token ids, and vLLM's extras; "openai" is the public API alone, text in and out;
    "auto" tries once at the start. `tokenizer`: a folder or a hub id; token ids and chat need it. `context_length` in
    tokens, None = what the provider tells.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    flavor: Literal["auto", "vllm", "openai"] = "auto"
    tokenizer: str | None = None
    context_length: int | None = None

    def problems(self) -> Iterator[str]:
        yield from ProviderConfig.problems(self)
        if self.flavor == "vllm" and self.tokenizer is None:
            yield "tokenizer: flavor vllm speaks token ids and needs one"
        if self.context_length is not None and self.context_length < 1:
            yield "context_length: must be at least 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteLargeModelConfig(RemoteModelConfig):
    """A large model elsewhere. `tool_format`: as in `LargeModelConfig`, with the `tokenizer`'s chat template."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    backend: Literal["remote"] = "remote"
    tool_format: ToolFormatName = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePairConfig:
    """A pair elsewhere; both models must tell a prompt's log-probabilities. `prompt_template`: as in `PairConfig`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    tuned: RemoteModelConfig
    untuned: RemoteModelConfig
    backend: Literal["remote"] = "remote"
    prompt_template: str | None = None


def _problem_of_url(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https") or not host:
        return "must begin with http:// or https:// and name a host"
    if "@" in parts.netloc:
        return "must hold no credentials: name the key's environment variable in api_key_env"
    if parts.query or parts.fragment:
        return "must end with its path, such as /v1"
    return None


@dataclass(frozen=True, slots=True)
class ServedModelConfig:
    """What the API calls a model: a large model plus, optionally, its default guidance."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    large: str
    guidance: Guidance | None = None


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """`threads`: CPU threads of the worker, "auto" = all cores. `dtype` "auto" = bfloat16 where the processor has
    instructions for it, else float32. `kv_cache_gb`: memory for the KV of each model, in 10⁹ bytes.
    `max_rows`: sequences decoded at once. `heartbeat_timeout_s`: a worker silent for so long is replaced."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    devices: Literal["auto"] | tuple[str, ...] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Literal["auto"] | int = "auto"
    max_rows: int = 256
    kv_cache_gb: Literal["auto"] | float = "auto"
    heartbeat_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Admission, counted in rows (W·K per guided choice, one per plain one), and a request's time in seconds.

    `max_sampled_tokens_per_request`: tokens that the large model may draw for one request, pruned ones included;
    answers that could take more end early. None = no bound.
    """

    max_rows: int = 256
    max_queued_rows: int = 512
    max_rows_per_request: int = 64
    max_sampled_tokens_per_request: int | None = None
    request_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything an engine is built from. Names refer to the mappings' keys. `traces`: see `telemetry.tracing`."""

    large_models: Mapping[str, LargeModelConfig | RemoteLargeModelConfig]
    served_models: Mapping[str, ServedModelConfig]
    pairs: Mapping[str, PairConfig | RemotePairConfig] = field(default_factory=dict)
    workers: WorkersConfig = WorkersConfig()
    limits: Limits = Limits()
    traces: bool = False

    @property
    def served(self) -> dict[str, tuple[str, Guidance | None]]:
        """By API name: the name of its large model, and its default guidance."""
        return {name: (model.large, model.guidance) for name, model in self.served_models.items()}
