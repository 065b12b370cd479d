"""What can be served, as frozen dataclasses; `server/config.py` reads them from YAML, environment and flags.

`__pydantic_config__` lets a reader that uses pydantic refuse unknown keys; nothing here needs pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from w2s_core.types import Guidance

_FORBID: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class LargeModelConfig:
    """`model`: a folder, a hub id, or "demo:NAME". `trust_remote_code` runs Python code from the model's folder.
    `devices`: those of `workers.devices` that hold it; None = all."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    model: str
    backend: Literal["local"] = "local"
    trust_remote_code: bool = False
    devices: tuple[str, ...] | None = None


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
    """Admission, counted in rows (W·K per guided choice, one per plain one), and a request's time in seconds."""

    max_rows: int = 256
    max_queued_rows: int = 512
    max_rows_per_request: int = 64
    request_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything `w2s_core.build` needs. Names refer to the keys of the mappings."""

    large_models: Mapping[str, LargeModelConfig]
    served_models: Mapping[str, ServedModelConfig]
    pairs: Mapping[str, PairConfig] = field(default_factory=dict)
    workers: WorkersConfig = WorkersConfig()
    limits: Limits = Limits()
