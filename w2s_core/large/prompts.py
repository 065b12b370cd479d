"""What a large model reads: prompts as token ids, with its own tokenizer and chat template."""

from __future__ import annotations

from w2s_core.errors import RequestError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Prompt, TextPrompt, TokenPrompt, Tokens


def encode_prompt(tokenizer: HFTokenizer, prompt: Prompt) -> Tokens:
    """Token ids, special tokens included; never empty. Raises RequestError, naming the field."""
    match prompt:
        case TokenPrompt():
            if any(not 0 <= token < tokenizer.size for token in prompt.tokens):
                raise RequestError(f"Token ids must be between 0 and {tokenizer.size - 1}.", "prompt")
            tokens = prompt.tokens
        case ChatPrompt():
            tokens = tokenizer.encode_chat(prompt)
        case TextPrompt():
            tokens = tokenizer.encode(prompt.text, special_tokens=prompt.special_tokens)
    tokens = tokens or tokenizer.empty_prompt
    if not tokens:
        raise RequestError("This model has no BOS token: the prompt must not be empty.", "prompt")
    return tokens
