"""What a large model's provider is asked before it serves: the context's length, and whether it speaks token ids."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_core.config import RemoteModelConfig
from w2s_core.errors import ConfigurationError, UpstreamRefusedError
from w2s_core.remote.capability_probe import listed_context_length
from w2s_core.remote.completion import read_completion
from w2s_core.remote.provider import Provider
from w2s_core.text.tokenizer import HFTokenizer

_PROBE = "The quick brown fox"


@dataclass(frozen=True, slots=True)
class LargeModelCapabilities:
    """`token_ids`: the provider takes and gives them, and its tokenizer is ours."""

    context_length: int
    token_ids: bool


async def probe_large_model(
    provider: Provider, config: RemoteModelConfig, tokenizer: HFTokenizer | None, key: str
) -> LargeModelCapabilities:
    """`key`: the configuration's, for ConfigurationError. Raises what `Provider.post` raises."""
    listed = await listed_context_length(provider)
    length = config.context_length or listed
    if length is None:
        raise ConfigurationError(
            f"{key}.context_length: set it, because {provider.config.base_urls[0]}/models does not tell it for "
            f"`{config.model}`."
        )
    if tokenizer is None or config.flavor == "openai":
        return LargeModelCapabilities(length, token_ids=False)
    ours = await _speaks_token_ids(provider, tokenizer, key)
    if config.flavor == "vllm" and not ours:
        raise ConfigurationError(f"{key}.flavor: the provider gives no token ids; openai or auto would do.")
    return LargeModelCapabilities(length, token_ids=ours)


async def _speaks_token_ids(provider: Provider, tokenizer: HFTokenizer, key: str) -> bool:
    """Raises ConfigurationError where the provider's tokenizer is another one."""
    tokens = tokenizer.encode(_PROBE, special_tokens=True)
    ask = {"model": provider.config.model, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    try:
        answer = await provider.post("/completions", {**ask, "prompt": _PROBE})
    except UpstreamRefusedError:  # it does not know the field
        return False
    choice = read_completion(answer, provider.name).choices[0]
    if choice.token_ids is None:
        return False
    if choice.prompt_token_ids is not None and tuple(choice.prompt_token_ids) != tokens:
        raise ConfigurationError(f"{key}.tokenizer: the provider reads other tokens than this tokenizer.")
    return True
