"""Escapes special tokens in user input, so that `<|im_end|>` in a message is encoded as plain text.

Tokenizers look for their special tokens anywhere in a text, and a rendered conversation does not show which parts came
from the template and which from a user. So a random separator is put inside each special token's name before rendering;
the rendered text is split at the separators and the parts are encoded one by one, none of which holds the whole name.
Conversations without such names are encoded as a whole, unchanged.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from w2s_core.types import ChatPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class SpecialTokenEscaper:
    """Finds and escapes one tokenizer's special tokens. A name of a single character cannot be escaped."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        names = sorted((token.content for token in special if len(token.content) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names))) if names else None

    def find(self, prompt: ChatPrompt) -> str | None:
        """Returns the first special token in the conversation's own texts."""
        if self._names is None:
            return None
        matches = (name for text in _texts_in(_user_values(prompt)) for name in self._names.findall(text))
        return next(matches, None)

    def escape(self, prompt: ChatPrompt) -> tuple[ChatPrompt, str | None]:
        """Returns the conversation with a separator inside each special token's name, and the separator.

        A conversation without such names is returned as it is, with None.
        """
        if self._names is None or self.find(prompt) is None:
            return prompt, None
        names, separator = self._names, f"[cut:{secrets.token_hex(8)}]"
        messages, tools, variables = _map_texts(
            _user_values(prompt),
            lambda text: names.sub(lambda name: name[0][0] + separator + name[0][1:], text),
        )
        escaped = replace(prompt, messages=tuple(messages), tools=tuple(tools), template_variables=variables)
        return escaped, separator


def _user_values(prompt: ChatPrompt) -> list[Any]:
    return [prompt.messages, prompt.tools, prompt.template_variables]


def _texts_in(value: Any) -> Iterator[str]:
    """Yields every string of a JSON value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts_in(key)
            yield from _texts_in(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts_in(inner)


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Copies a JSON value with `change` applied to every string of it, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_texts(key, change): _map_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_map_texts(inner, change) for inner in value]
    return value
