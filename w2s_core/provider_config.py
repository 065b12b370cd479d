"""Configuration of a remote model, its provider and a managed vLLM, as frozen dataclasses (see `w2s_core.config`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import urlsplit

_FORBID: dict[str, str] = {"extra": "forbid"}
_OWN_ARGUMENTS = (
    *("api-key", "config", "disable-uvicorn-access-log", "grpc", "grpc-port", "headless", "host", "port"),
    *("root-path", "served-model-name", "ssl-ca-certs", "ssl-certfile", "ssl-keyfile", "tokenizer", "uds"),
)
_REVISION = "download that revision and set the key model to its folder, from which the server takes the tokenizer too"
# Arguments of `vllm serve` that `extra_args` must not have, and what to do instead.
_MANAGED_ARGUMENTS = {
    "model": "set the key model",
    "tensor-parallel-size": "set the key tensor_parallel_size",
    "quantization": "set the key quantization",
    "max-model-len": "set the key max_model_len",
    **dict.fromkeys(_OWN_ARGUMENTS, "the server sets it"),
    **dict.fromkeys(("revision", "tokenizer-revision"), _REVISION),
}
_SHORT_ARGUMENTS = {"-q": "quantization", "-tp": "tensor-parallel-size"}


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
class VLLMConfig:
    """A vLLM that this server starts: its command line, and the calls to it. Times are in seconds.

    `model`: a folder, a Hugging Face hub id, or "demo:NAME". `command`: the program `vllm`, by its name on PATH or its
    path. `tensor_parallel_size`, `quantization` and `max_model_len`: as `vllm serve` takes them, None = its default.
    `extra_args`: further arguments of `vllm serve`. `start_timeout_s`: how long it may take until it is healthy, a
    download of the model included. `call_timeout_s`, `max_concurrency`: as in `ProviderConfig`; time in which vLLM is
    restarted does not count.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID
    model: str
    command: str = "vllm"
    tensor_parallel_size: int = 1
    quantization: str | None = None
    max_model_len: int | None = None
    extra_args: tuple[str, ...] = ()
    start_timeout_s: float = 1800.0
    call_timeout_s: float = 50.0
    max_concurrency: int = 64

    def problems(self) -> Iterator[str]:
        """As `ProviderConfig.problems`."""
        for key in ("model", "command"):
            if not getattr(self, key).strip() or getattr(self, key).startswith("-"):
                yield f"{key}: must not be empty or begin with -"
        for key in ("start_timeout_s", "call_timeout_s"):
            if not 0 < getattr(self, key) < float("inf"):
                yield f"{key}: must be above 0"
        for key in ("tensor_parallel_size", "max_model_len", "max_concurrency"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                yield f"{key}: must be at least 1"
        for name in dict.fromkeys(filter(None, map(_managed_argument, self.extra_args))):
            yield f"extra_args: must not have --{name}; {_MANAGED_ARGUMENTS[name]}"


def _managed_argument(argument: str) -> str | None:
    """The argument of `_MANAGED_ARGUMENTS` that `vllm serve` would read, None if it is another one.

    vLLM takes `_` for `-`, and argparse a value behind `=` and any beginning of a long name.
    """
    if argument.startswith("--"):
        name = argument[2:].partition("=")[0].replace("_", "-").removeprefix("no-")
        return next((full for full in _MANAGED_ARGUMENTS if name and full.startswith(name)), None)
    return next((full for short, full in _SHORT_ARGUMENTS.items() if argument.startswith(short)), None)


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
