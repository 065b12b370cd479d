"""Configuration of an engine as frozen dataclasses. The server reads them from YAML, environment variables and flags.

`__pydantic_config__` makes pydantic, which the server reads them with, refuse unknown keys. This module does not need
pydantic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from w2s_core.types import Guidance

ToolFormatName: TypeAlias = Literal["auto", "hermes", "llama3_json", "mistral"]
ReasoningFormatName: TypeAlias = Literal[
    "auto",
    "none",
    "deepseek_r1",
    "deepseek_v3",
    "glm45",
    "kimi_k2",
    "minimax_m2",
    "mistral",
    "olmo3",
    "qwen3",
    "seed_oss",
]
GenerationConfigName: TypeAlias = Literal["auto", "ignore", "vllm"]
_FORBID: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class LargeModelConfig:
    """A large model that runs in our own workers.

    `model`: a folder, a Hugging Face hub id, or "demo:NAME". `trust_remote_code` runs Python code from the model's
    folder. `devices`: those of `workers.devices` that load it, None = all. `tool_format`: how the model writes tool
    calls, and `reasoning_format`: how it marks its thoughts ("none" = not), by the names of vLLM's parsers; "auto" =
    detected from its chat template. `generation_config`: "auto" takes sampling defaults from the
    model's `generation_config.json`, "ignore" (or "vllm", as vLLM calls it) does not.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    model: str
    backend: Literal["local"] = "local"
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None
    tool_format: ToolFormatName = "auto"
    reasoning_format: ReasoningFormatName = "auto"
    generation_config: GenerationConfigName = "auto"


@dataclass(frozen=True, slots=True)
class PairConfig:
    """A pair (π_tuned, π_untuned) that runs in our own workers. The keys of `LargeModelConfig` have the same meaning.

    `prompt_template` is what the pair reads before the answer. None: the prompt in the pair's own chat template (chat)
    or as it is (completions). A string: that, with `{prompt}` replaced literally. "": nothing.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    tuned: str
    untuned: str
    backend: Literal["local"] = "local"
    prompt_template: str | None = None
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """The provider of a remote model: its addresses, retries and circuit breaker. Times are in seconds.

    `base_url`: one URL or several that serve the same model, each with its path (`http://host:8000/v1`).
    `model`: the provider's name of the model. `api_key_env`: the environment variable that holds the API key.
    `call_timeout_s` bounds a call, its retries and its whole response included: an attempt may take what is left, or
    half of that while another base_url can be tried. `max_concurrency`: concurrent calls. `max_retries`: attempts after
    the first, including those at another base_url; an attempt that timed out is repeated only there.
    Circuit breaker: after `breaker_failures` failed calls in a row a base_url gets no calls for `breaker_cooldown_s`,
    then one that probes it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    base_url: str | tuple[str, ...]
    model: str
    api_key_env: str | None = None
    connect_timeout_s: float = 5.0
    call_timeout_s: float = 50.0
    max_concurrency: int = 64
    max_retries: int = 3
    breaker_failures: int = 5
    breaker_cooldown_s: float = 5.0

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The distinct URLs, without a trailing slash."""
        urls = (self.base_url,) if isinstance(self.base_url, str) else self.base_url
        return tuple(dict.fromkeys(url.rstrip("/") for url in urls))

    def problems(self) -> Iterator[str]:
        """Yields "key: reason" for every invalid key. Values are left out, because they may hold secrets."""
        if not self.base_urls:
            yield "base_url: must name at least one URL"
        for url in self.base_urls:
            if (reason := _problem_of_url(url)) is not None:
                yield f"base_url: {reason}"
        for key in ("connect_timeout_s", "call_timeout_s", "breaker_cooldown_s"):
            if not 0 < getattr(self, key) < float("inf"):
                yield f"{key}: must be above 0"
        for key, minimum in (("max_concurrency", 1), ("max_retries", 0), ("breaker_failures", 1)):
            if getattr(self, key) < minimum:
                yield f"{key}: must be at least {minimum}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModelConfig(ProviderConfig):
    """A model behind an OpenAI-compatible completion API that returns log-probabilities.

    `flavor`: "vllm" exchanges token ids and uses vLLM's extensions; "openai" uses the public API alone and exchanges
    text; "auto" probes the provider at start-up. `tokenizer`: a folder or a hub id; token ids and chat need it.
    `context_length`: in tokens, None = what the provider reports.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    flavor: Literal["auto", "vllm", "openai"] = "auto"
    tokenizer: str | None = None
    context_length: int | None = None

    def problems(self) -> Iterator[str]:
        yield from ProviderConfig.problems(self)
        if self.flavor == "vllm" and self.tokenizer is None:
            yield "tokenizer: flavor vllm exchanges token ids and needs one"
        if self.context_length is not None and self.context_length < 1:
            yield "context_length: must be at least 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteLargeModelConfig(RemoteModelConfig):
    """A large model at a provider. `tool_format`, `reasoning_format`: as in `LargeModelConfig`; "auto" needs a
    `tokenizer`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    backend: Literal["remote"] = "remote"
    tool_format: ToolFormatName = "auto"
    reasoning_format: ReasoningFormatName = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePairConfig:
    """A pair at providers that return the log-probabilities of a prompt. `prompt_template`: as in `PairConfig`."""

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
        return "must hold no credentials; name the environment variable that holds the key in api_key_env"
    if parts.query or parts.fragment:
        return "must end with its path, such as /v1"
    return None


@dataclass(frozen=True, slots=True)
class ServedModelConfig:
    """A model name of the API: a key of `large_models` and, optionally, what requests get by default.

    `sampling` holds values of `SamplingParams` by name. The large model's own defaults hold for what it does not name.
    """

    large: str
    guidance: Guidance | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """The worker processes, one per entry of `devices`.

    `devices`: torch device names; "auto" = all GPUs, or the CPU if there are none. `dtype`: "auto" = bfloat16 if the
    processor has instructions for it, else float32. `threads`: CPU threads of each worker; "auto" = the cores divided
    by the workers. `max_rows`: sequences decoded at once. `kv_cache_gb`: memory for the KV cache of each model, in 10⁹
    bytes. `heartbeat_timeout_s`: a worker that does not answer for so long is restarted.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    devices: Literal["auto"] | tuple[str, ...] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Literal["auto"] | int = "auto"
    max_rows: int = 256
    kv_cache_gb: Literal["auto"] | float = "auto"
    heartbeat_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of admission and of a single request. A row is one sampled sequence: W·K per guided choice, else one.

    `max_rows` rows run at once and `max_queued_rows` wait. `max_sampled_tokens_per_request`: tokens that the large
    model may sample for one request, pruned ones included; answers that could exceed it are shortened. None = no limit.
    `request_timeout_s`: seconds that a request may take, its time in the queue included.
    """

    max_rows: int = 256
    max_queued_rows: int = 512
    max_rows_per_request: int = 64
    max_sampled_tokens_per_request: int | None = None
    request_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that `build_engine` needs. Models and pairs refer to each other by their keys.

    `traces` turns on OpenTelemetry tracing (see `telemetry.tracing`).
    """

    large_models: Mapping[str, LargeModelConfig | RemoteLargeModelConfig]
    served_models: Mapping[str, ServedModelConfig]
    pairs: Mapping[str, PairConfig | RemotePairConfig] = field(default_factory=dict)
    workers: WorkersConfig = WorkersConfig()
    limits: Limits = Limits()
    traces: bool = False
