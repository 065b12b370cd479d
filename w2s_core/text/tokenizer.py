"""Hugging Face tokenizers: encodes prompts and conversations, decodes answers. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from w2s_core.errors import ConfigurationError, RequestError
from w2s_core.text.chat_template import ChatTemplate
from w2s_core.text.continuations import ContinuationEncoder
from w2s_core.text.special_tokens import SpecialTokenEscaper
from w2s_core.text.token_bytes import build_token_text_lookup
from w2s_core.types import ChatPrompt, Tokens, TokenText


class HFTokenizer:
    """One model's fast tokenizer, with its chat template.

    `folder_or_id` is a folder or a Hugging Face hub id that holds a `tokenizer.json`. Raises ConfigurationError where
    it cannot be loaded.
    """

    def __init__(self, folder_or_id: str) -> None:
        from transformers import PreTrainedTokenizerFast  # slow to import, and the HTTP side does not need it

        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_or_id)
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"{folder_or_id}: cannot load a fast tokenizer (tokenizer.json): {reason}"
            ) from None

        self._skip_special_tokens = True
        self.chat_template = ChatTemplate(self._tokenizer)
        self._escaper = SpecialTokenEscaper(self._tokenizer)
        self._continuations = ContinuationEncoder(self.encode_many)
        self._size = max(self.vocabulary.values()) + 1  # the tokenizer's length is less where ids are missing
        #: The tokenizer serialized as `tokenizer.json`: equal strings tokenize alike.
        self.tokenizer_json: str = self._tokenizer.backend_tokenizer.to_str()
        rules = json.loads(self.tokenizer_json)
        self.splits_at_words = _splits_at_words(rules)
        self._look_up_text = build_token_text_lookup(self._tokenizer, rules)

    @property
    def eos(self) -> int | None:
        """The end-of-sequence token's id, as the tokenizer's configuration names it."""
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    @property
    def empty_prompt(self) -> Tokens:
        """What a model reads in place of an empty prompt: BOS, or EOS where it has no BOS (as GPT-2), or nothing."""
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        return () if first is None else (first,)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by their names."""
        vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    @property
    def size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return self._size

    @property
    def verbatim(self) -> HFTokenizer:
        """The same tokenizer, whose `decode` keeps special tokens (`skip_special_tokens=False`)."""
        other = copy(self)
        other._skip_special_tokens = False
        return other

    def encode(self, text: str, *, special_tokens: bool) -> Tokens:
        """Token ids of a text. `special_tokens` adds what the tokenizer puts around a text (BOS)."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=special_tokens))

    def encode_many(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of several texts, without special tokens, each as it stands alone."""
        if not texts:
            return []
        return [tuple(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def encode_continuations(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of several texts, without special tokens, each as it stands behind another text."""
        return self._continuations.encode(texts)

    def encode_chat(self, prompt: ChatPrompt) -> Tokens:
        """Token ids of a conversation, rendered by the chat template; special tokens in its messages stay text.

        Raises RequestError where the template refuses.
        """
        escaped, separator = self.escape_special_tokens(prompt)
        return self.encode_escaped(self.chat_template.render(escaped), separator, special_tokens=prompt.special_tokens)

    def escape_special_tokens(self, prompt: ChatPrompt) -> tuple[ChatPrompt, str | None]:
        """Returns the conversation to render, and the separator for `encode_escaped`. See `text.special_tokens`."""
        return self._escaper.escape(prompt)

    def encode_escaped(self, text: str, separator: str | None, *, special_tokens: bool) -> Tokens:
        """As `encode`, for a text rendered from an escaped conversation: its parts are encoded one by one."""
        if separator is None:
            return self.encode(text, special_tokens=special_tokens)
        first, *others = text.split(separator)
        tokens = self.encode(first, special_tokens=special_tokens)
        for other in self.encode_continuations(others):
            tokens += other
        return tokens

    def render_chat(self, prompt: ChatPrompt) -> str:
        """The conversation as text, for a provider that tokenizes it: without the BOS that the provider then adds.

        Raises RequestError where the template refuses, and where a message holds the name of a special token.
        """
        if (name := self._escaper.find(prompt)) is not None:
            raise RequestError(
                f"A message contains `{name}`, a special token of this model. The model's provider takes text only, so "
                "it cannot be escaped; remove it.",
                "messages",
            )
        text, bos = self.chat_template.render(prompt), self._tokenizer.bos_token
        adds_bos = self.encode("", special_tokens=True)[:1] == (self._tokenizer.bos_token_id,)
        return text.removeprefix(str(bos)) if bos and adds_bos else text

    def convert_ids_to_tokens(self, tokens: Sequence[int]) -> list[str]:
        """The tokens' names in the vocabulary; each id must be one of its own."""
        return [str(self._tokenizer.convert_ids_to_tokens(token)) for token in tokens]

    def is_special(self, token: int) -> bool:
        """Whether the token is a special one, such as EOS, which stands for no text."""
        added = self._tokenizer.added_tokens_decoder.get(token)
        return added is not None and bool(added.special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens, special tokens left out; bytes that are not a character become U+FFFD."""
        skip = self._skip_special_tokens
        text = self._tokenizer.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        return str(text)

    def token_text(self, token: int) -> TokenText:
        """Text and bytes of a single token, as log-probabilities show it."""
        return self._look_up_text(token)


def _splits_at_words(rules: Mapping[str, Any]) -> bool:
    """Whether a space between two letters always separates tokens, so that the text on each side can be encoded alone.

    That holds for a byte-level BPE with GPT-2's splitting rule, also after a splitting of digits. `rules` is the parsed
    `tokenizer.json`.
    """
    pre_tokenizer = rules["pre_tokenizer"] or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return (
        rules["model"]["type"] == "BPE"
        and not rules["normalizer"]
        and all(step.get("type") in ("Digits", "ByteLevel") for step in steps)
        and any(step.get("use_regex") and not step.get("add_prefix_space") for step in steps)
        and not any(" " in token["content"] for token in rules["added_tokens"])
    )
