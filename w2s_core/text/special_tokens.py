"""What people write stays text: `<|im_end|>` in a message is ten characters, and not the token that ends a turn.

Tokenizers look for their special tokens anywhere in a text, and a rendered conversation no longer tells what of it is
the template's. So a mark is put inside each such name before rendering, and at the marks the text is cut and encoded in
parts, none of which holds the name whole. Conversations without such names are encoded as ever, in one piece.
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
    """Those of one tokenizer. A name of a single character cannot be cut, and stays what it is."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        names = sorted((token.content for token in special if len(token.content) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names))) if names else None
        #: One that takes nothing of the text behind it.
        self.guard = next((token.content for token in special if not token.rstrip and not token.single_word), None)

    def found_in(self, prompt: ChatPrompt) -> str | None:
        """The first of them that stands in the conversation's own texts."""
        if self._names is None:
            return None
        found = (name for text in _texts_in(_parts_of(prompt)) for name in self._names.findall(text))
        return next(found, None)

    def cut(self, prompt: ChatPrompt) -> tuple[ChatPrompt, str | None]:
        """The conversation with a mark inside each name, and the mark; itself and None where there is none."""
        if self._names is None or self.found_in(prompt) is None:
            return prompt, None
        names, mark = self._names, f"[cut:{secrets.token_hex(8)}]"
        cut = _mapped(_parts_of(prompt), lambda text: names.sub(lambda name: name[0][0] + mark + name[0][1:], text))
        messages, tools, variables = cut
        return replace(prompt, messages=tuple(messages), tools=tuple(tools), template_variables=variables), mark


def _parts_of(prompt: ChatPrompt) -> list[Any]:
    return [prompt.messages, prompt.tools, prompt.template_variables]


def _texts_in(value: Any) -> Iterator[str]:
    """Every text of a JSON value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts_in(key)
            yield from _texts_in(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts_in(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same, each of these texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_mapped(inner, change) for inner in value]
    return value
