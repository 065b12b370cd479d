"""Encodes a prompt of any form as token ids of the large model, with its own tokenizer and chat template.

A prompt of token ids can be decoded again, for the pairs.
"""

from __future__ import annotations

from w2s_core.errors import RequestError
from w2s_core.text.tokenizer import HFTokenizer
from w2s_core.types import ChatPrompt, Prompt, TextPrompt, TokenPrompt, Tokens


def encode_prompt(tokenizer: HFTokenizer, prompt: Prompt, vocabulary: int | None = None) -> Tokens:
    """Token ids of the prompt, special tokens included; an empty prompt is BOS alone.

    Raises RequestError, naming the field, for ids that the tokenizer does not have or that the model, which can read
    those below `vocabulary`, does not; a chat template that refuses; and an empty prompt where there is no BOS.
    """
    size = tokenizer.size if vocabulary is None else vocabulary
    match prompt:
        case TokenPrompt():
            if any(not 0 <= token < size for token in prompt.tokens):
                raise RequestError(f"Token ids must be between 0 and {size - 1}.", "prompt")
            tokens = prompt.tokens
        case ChatPrompt():
            tokens = tokenizer.encode_chat(prompt)
        case TextPrompt():
            tokens = tokenizer.encode(prompt.text, special_tokens=prompt.special_tokens)
    tokens = tokens or tokenizer.empty_prompt
    if tokens and max(tokens) >= size:
        [name] = tokenizer.convert_ids_to_tokens([max(tokens)])
        field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        raise RequestError(
            f"The model cannot read `{name}`: its tokenizer has this token, its embedding has not.", field
        )
    if not tokens:
        raise RequestError("The prompt must not be empty, because this model has no BOS token.", "prompt")
    return tokens


def decode_prompt(tokenizer: HFTokenizer, prompt: Prompt) -> Prompt:
    """The prompt, a `TokenPrompt` decoded to text."""
    return TextPrompt(tokenizer.decode(prompt.tokens)) if isinstance(prompt, TokenPrompt) else prompt


def extend_prompt(tokenizer: HFTokenizer, prompt: Tokens, answer: Tokens, text: str) -> Tokens:
    """As `LargeModel.extend_prompt`, where prompts are token ids."""
    rest = tokenizer.encode_continuations([text])[0] if text else ()
    return prompt + answer + rest
