"""Configuration of an engine as frozen dataclasses. The server reads them from YAML, environment variables and flags.

`__pydantic_config__` makes pydantic, which the server reads them with, refuse unknown keys. This module does not need
pydantic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from w2s_core.provider_config import ProviderConfig as ProviderConfig  # noqa: PLC0414  (part of the configuration)
from w2s_core.provider_config import RemoteModelConfig as RemoteModelConfig  # noqa: PLC0414
from w2s_core.provider_config import VLLMConfig as VLLMConfig  # noqa: PLC0414
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
QuantizationName: TypeAlias = Literal["none", "int8"]
GenerationConfigName: TypeAlias = Literal["auto", "ignore", "vllm"]
_FORBID: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A model with a LoRA adapter, whose weights it shares with every other use of the model.

    `model`: as `LargeModelConfig.model`. `adapter`: a folder or a hub id with PEFT's `adapter_config.json` and
    `adapter_model.safetensors`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    model: str
    adapter: str


ModelReference: TypeAlias = str | AdapterConfig


def is_path(name: str) -> bool:
    """Whether a name can only be a path, and no hub id: it begins with `.`, `/` or `~`, or its parent is here."""
    return name.startswith((".", "/", "~")) or (len(Path(name).parts) > 1 and Path(name).parent.is_dir())


@dataclass(frozen=True, slots=True)
class LargeModelConfig:
    """A large model that runs in our own workers.

    `model`: a folder, a Hugging Face hub id, or "demo:NAME"; that of an adapter means its base with the adapter.
    `trust_remote_code` runs Python code from the model's folder. `devices`: those of `workers.devices` that load
    it, None = all; with "cuda:0+cuda:1" one worker has the model on both. `quantization`: None =
    `workers.quantization`. `tool_format`: how the model writes tool calls, and `reasoning_format`: how it marks its
    thoughts ("none" = not), by the names of vLLM's parsers; "auto" = detected from its chat template.
    `generation_config`: "auto" takes sampling defaults from the model's
    `generation_config.json`, "ignore" (or "vllm", as vLLM calls it) does not.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    model: ModelReference
    backend: Literal["local"] = "local"
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None
    tool_format: ToolFormatName = "auto"
    reasoning_format: ReasoningFormatName = "auto"
    generation_config: GenerationConfigName = "auto"
    quantization: QuantizationName | None = None


@dataclass(frozen=True, slots=True)
class PairConfig:
    """A pair (π_tuned, π_untuned) that runs in our own workers. The keys of `LargeModelConfig` have the same meaning.

    `prompt_template` is what the pair reads before the answer. None: the prompt in the pair's own chat template (chat)
    or as it is (completions). A string: that, with `{prompt}` replaced literally. "": nothing. `untuned` None: scores
    are log π_tuned alone, those of an autoregressive reward model (GenARM, Xu et al. 2025, arXiv:2410.08193).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    tuned: ModelReference
    untuned: ModelReference | None
    backend: Literal["local"] = "local"
    prompt_template: str | None = None
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None
    quantization: QuantizationName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteLargeModelConfig(RemoteModelConfig):
    """A large model at a provider. `tool_format`, `reasoning_format`: as in `LargeModelConfig`; "auto" needs a
    `tokenizer`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    backend: Literal["remote"] = "remote"
    tool_format: ToolFormatName = "auto"
    reasoning_format: ReasoningFormatName = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedLargeModelConfig(VLLMConfig):
    """A large model in a vLLM that this server starts, watches, restarts and stops. `tool_format`, `reasoning_format`,
    `generation_config`: as in `LargeModelConfig`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    backend: Literal["vllm"] = "vllm"
    tool_format: ToolFormatName = "auto"
    reasoning_format: ReasoningFormatName = "auto"
    generation_config: GenerationConfigName = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePairConfig:
    """A pair at providers that return the log-probabilities of a prompt. `prompt_template`, `untuned`: as in
    `PairConfig`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    tuned: RemoteModelConfig
    untuned: RemoteModelConfig | None
    backend: Literal["remote"] = "remote"
    prompt_template: str | None = None


@dataclass(frozen=True, slots=True)
class RewardModelConfig:
    """A reward model that runs in our own workers: a decoder with a sequence-classification head.

    The reward of an answer so far is the head's output at its last token: of one output itself, of several the
    log-odds of `label`, an output's name or number. `prompt_template` and the other keys: as in `PairConfig`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    model: str
    backend: Literal["local"] = "local"
    label: str | int | bool | None = None  # YAML's yes and no are booleans, and refused
    prompt_template: str | None = None
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None
    quantization: QuantizationName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRewardModelConfig(ProviderConfig):
    """A reward model behind an HTTP endpoint that scores texts, as vLLM's `/classify` and `/pooling` do.

    `base_url` may end with the provider's /v1, which those endpoints stand beside. `endpoint`: which of the two; "auto"
    probes the provider at start-up. `tokenizer`: a folder or a hub id; with one, token ids are sent, and conversations
    may use its chat template. `prompt_template` and `label`: as in `RewardModelConfig`, but the label is a number,
    because the endpoints do not tell the outputs' names.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    backend: Literal["remote"] = "remote"
    endpoint: Literal["auto", "classify", "pooling"] = "auto"
    label: str | int | bool | None = None
    tokenizer: str | None = None
    prompt_template: str | None = None

    def problems(self) -> Iterator[str]:
        yield from ProviderConfig.problems(self)
        if self.label is not None and not str(self.label).isdecimal():
            yield "label: must be the output's number, because the provider does not tell the names of outputs"


@dataclass(frozen=True, slots=True)
class PythonScorerConfig:
    """A scorer of one's own. `python`: "package.module:factory", which is called with `options` and returns a
    `w2s_core.interfaces.Scorer`. It runs in the server's own process."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    python: str
    options: Mapping[str, Any] = field(default_factory=dict)


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

    `devices`: torch device names; "auto" = all GPUs, or the CPU if there are none. A `+` joins devices of one worker,
    over which its models' layers are spread; with "auto", those that a model's `devices` join. `dtype`: "auto" =
    bfloat16 if the processor has instructions for it, else float32. `quantization`: "int8" rounds the weights of
    linear layers to 8 bits and multiplies integers, on CPUs only; "auto" of `dtype` is then float32. `threads`: CPU
    threads of each worker; "auto" = the cores divided by the workers. `max_rows`: sequences decoded at once.
    `kv_cache_gb`: memory for the KV cache of each model, in 10⁹ bytes. `cuda_graphs`: decode steps on a GPU are
    captured once for each shape and replayed. `heartbeat_timeout_s`: a worker, or a managed vLLM, that does not answer
    for so long is restarted.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    devices: Literal["auto"] | tuple[str, ...] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: QuantizationName = "none"
    threads: Literal["auto"] | int = "auto"
    max_rows: int = 256
    kv_cache_gb: Literal["auto"] | float = "auto"
    cuda_graphs: bool = False
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
    """Everything that `build_engine` needs. Models, pairs and other scorers refer to each other by their keys.

    No two of `pairs`, `reward_models` and `scorers` may have the same name.

    `traces` turns on OpenTelemetry tracing (see `telemetry.tracing`).
    """

    large_models: Mapping[str, LargeModelConfig | RemoteLargeModelConfig | ManagedLargeModelConfig]
    served_models: Mapping[str, ServedModelConfig]
    pairs: Mapping[str, PairConfig | RemotePairConfig] = field(default_factory=dict)
    workers: WorkersConfig = WorkersConfig()
    limits: Limits = Limits()
    traces: bool = False
    reward_models: Mapping[str, RewardModelConfig | RemoteRewardModelConfig] = field(default_factory=dict)
    scorers: Mapping[str, PythonScorerConfig] = field(default_factory=dict)
