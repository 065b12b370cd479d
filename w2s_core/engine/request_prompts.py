"""What the large model and the pairs read of a request's prompt, and the text that is only scored."""

from __future__ import annotations

from dataclasses import replace

from w2s_core.engine.thoughts import without_thoughts
from w2s_core.engine.token_budget import truncated_length
from w2s_core.errors import RequestError
from w2s_core.interfaces import LargeModel
from w2s_core.types import ChatPrompt, GenerationRequest, Guidance, Prompt, TextPrompt, TokenPrompt, Tokens


def encode_request_prompt(request: GenerationRequest, prompt: Prompt, large: LargeModel) -> tuple[Prompt, Tokens]:
    """The prompt and its token ids, both truncated if the request asks for it."""
    tokens = large.encode(prompt)
    if request.needs_token_ids and not large.exposes_token_ids:
        raise RequestError("Token ids cannot be returned: only the model's provider knows them.", "return_token_ids")
    length = truncated_length(request, tokens, large)
    if length < len(tokens):
        tokens = tokens[-length:]
        # A conversation is rendered by the pair's own template, so the pair may read what the large model does not.
        prompt = prompt if isinstance(prompt, ChatPrompt) else TokenPrompt(tokens)
    return prompt, tokens


def decode_request_prompt(request: GenerationRequest, prompt: Prompt, large: LargeModel) -> Prompt:
    """The prompt, token ids as text, with the names of special tokens if the request shows those."""
    if isinstance(prompt, TokenPrompt) and large.exposes_token_ids and not request.sampling.skip_special_tokens:
        return TextPrompt(large.decoder.verbatim.decode(prompt.tokens))
    return large.decode_prompt(prompt)


def split_scored_text(
    request: GenerationRequest, prompt: Prompt, guidance: Guidance | None
) -> tuple[Prompt, str | None]:
    """The pairs' prompt x, and the answer y that they score if nothing is to be sampled (`max_tokens` 0), else None."""
    only_scored = request.sampling.max_tokens == 0 and guidance is not None and bool(guidance.weights)
    if guidance is None or not guidance.thoughts:
        prompt = without_thoughts(prompt)
    if not only_scored or not isinstance(prompt, TextPrompt):
        if request.score_prefix is not None:
            raise RequestError(
                "guidance.prompt applies to texts that pairs only score: set echo to true and max_tokens to 0.",
                "guidance.prompt",
            )
        return prompt, None
    x = request.score_prefix or ""
    if not prompt.text.startswith(x):
        raise RequestError("Every prompt must begin with guidance.prompt.", "guidance.prompt")
    return replace(prompt, text=x), prompt.text[len(x) :]
