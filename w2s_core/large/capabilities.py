"""Probes a large model's provider at start: its context length, and whether it takes token ids and streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from w2s_core.config import RemoteModelConfig
from w2s_core.errors import ConfigurationError, UpstreamError, UpstreamRefusedError
from w2s_core.remote.capability_probe import PROBE_TEXT, listed_context_length
from w2s_core.remote.completion import COMPLETIONS_PATH, Choice, Logprobs, read_completion
from w2s_core.remote.completion_stream import STREAM_FIELDS, CompletionStream
from w2s_core.remote.provider import Provider
from w2s_core.text.tokenizer import HFTokenizer

# What to change where a provider does not fit the configuration: of a remote model, and of a managed vLLM.
_REMOTE_CHANGES = {
    "context length": "context_length: set it",
    "token ids": "flavor: set it to openai or auto",
    "tokenizer": "tokenizer: set the model's own tokenizer",
}
_MANAGED_CHANGES = {
    "context length": "max_model_len: set it",
    "token ids": "command: name a later vLLM",
    "tokenizer": "extra_args: leave vLLM's tokenizer as it is",
}


@dataclass(frozen=True, slots=True)
class LargeModelCapabilities:
    """What a provider can do.

    `token_ids`: it takes and returns token ids, and they are `tokenizer`'s. `streams`: it streams completions.
    """

    context_length: int
    token_ids: bool
    streams: bool


async def probe_large_model(
    provider: Provider, config: RemoteModelConfig, tokenizer: HFTokenizer | None, key: str, *, managed: bool = False
) -> LargeModelCapabilities:
    """Asks the provider, and compares its answers with the configuration.

    `key` is the model's place in the configuration. `managed`: a managed vLLM is configured there.

    Raises ConfigurationError, which names what to change, and what `Provider.post` raises.
    """
    changes = {name: f"{key}.{change}" for name, change in (_MANAGED_CHANGES if managed else _REMOTE_CHANGES).items()}
    listed = await listed_context_length(provider)
    length = config.context_length or listed
    if length is None:
        raise ConfigurationError(
            f"{changes['context length']}, because {provider.config.base_urls[0]}/models does not list one for "
            f"`{config.model}`."
        )
    token_ids = False
    if tokenizer is not None and config.flavor != "openai":
        token_ids = await _supports_token_ids(provider, tokenizer, changes)
    if config.flavor == "vllm" and not token_ids:
        raise ConfigurationError(f"{changes['token ids']}, because the provider returns no token ids.")
    return LargeModelCapabilities(length, token_ids=token_ids, streams=await _supports_streams(provider, token_ids))


async def _supports_token_ids(provider: Provider, tokenizer: HFTokenizer, changes: Mapping[str, str]) -> bool:
    """Raises ConfigurationError where the provider tokenizes differently from `tokenizer`."""
    tokens = tokenizer.encode(PROBE_TEXT, special_tokens=True)
    body = {"model": provider.config.model, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    try:
        answer = await provider.post(COMPLETIONS_PATH, {**body, "prompt": PROBE_TEXT})
    except UpstreamRefusedError:  # it does not know `return_token_ids`
        return False
    choice = read_completion(answer, provider.name).choices[0]
    if choice.token_ids is None:
        return False
    if choice.prompt_token_ids is not None and tuple(choice.prompt_token_ids) != tokens:
        raise ConfigurationError(f"{changes['tokenizer']}, because the provider tokenizes differently.")
    return True


async def _supports_streams(provider: Provider, token_ids: bool) -> bool:
    """Whether two choices of two tokens arrive in events that make a whole completion. Not streaming is no fault."""
    body = {"model": provider.config.model, "prompt": PROBE_TEXT, "n": 2, "max_tokens": 2, "logprobs": 1}
    if token_ids:
        body["return_token_ids"] = True
    try:
        stream = await provider.stream(
            COMPLETIONS_PATH, {**body, **STREAM_FIELDS}, lambda: CompletionStream(provider.name)
        )
        completion = stream.completion()
    except UpstreamError:
        return False
    drawn = -1 if completion.usage is None else completion.provider_usage.completion_tokens
    whole = len(completion.choices) == 2 and stream.events > 2 and stream.tokens <= drawn  # EOS may not be listed
    return whole and all(_is_whole(choice, token_ids) for choice in completion.choices)


def _is_whole(choice: Choice, token_ids: bool) -> bool:
    """Whether a streamed choice has ended, and has log-probabilities and token ids of all its tokens."""
    logprobs = choice.logprobs or Logprobs()
    counts = {len(logprobs.tokens), len(logprobs.token_logprobs)}
    counts |= {len(choice.token_ids or ())} if token_ids else set()
    return len(counts) == 1 and (
        choice.finish_reason == "stop" or (choice.finish_reason == "length" and 0 not in counts)
    )
