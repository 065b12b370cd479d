"""What a large model reads: prompts as token ids, with its own tokenizer and chat template."""

from __future__ import annotations

from w2s_core.errors import RequestError
from w2s_core.text.tokenizer import TextCodec
from w2s_core.types import ChatPrompt, Prompt, TextPrompt, TokenPrompt, Tokens


def encode_prompt(codec: TextCodec, prompt: Prompt) -> Tokens:
    """Token ids, special tokens included; never empty. Raises RequestError, naming the field."""
    match prompt:
        case TokenPrompt():
            if any(not 0 <= token < codec.size for token in prompt.tokens):
                raise RequestError(f"Token ids must be between 0 and {codec.size - 1}.", "prompt")
            tokens = prompt.tokens
        case ChatPrompt():
            tokens = codec.encode_chat(prompt)
        case TextPrompt():
            tokens = codec.encode(prompt.text, special_tokens=prompt.special_tokens)
    tokens = tokens or codec.start
    if not tokens:
        raise RequestError("This model has no BOS token: the prompt must not be empty.", "prompt")
    return tokens
