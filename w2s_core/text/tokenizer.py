"""Text and tokens: chat templates, incremental decoding, stop strings. Imports no torch: fast tokenizers need none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from w2s_core.errors import ConfigurationError, RequestError
from w2s_core.text.chat_template import ChatTemplate
from w2s_core.text.special_tokens import SpecialTokenEscaper
from w2s_core.text.token_bytes import token_text_reader
from w2s_core.types import ChatPrompt, Tokens, TokenText


class HFTokenizer:
    """One model's tokenizer. `folder_or_id` is what transformers takes; it must hold a `tokenizer.json`."""

    def __init__(self, folder_or_id: str) -> None:
        from transformers import PreTrainedTokenizerFast  # slow to import, and the HTTP side does without

        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_or_id)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{folder_or_id}: cannot load a fast tokenizer (tokenizer.json): {error}"
            ) from None

        self._skip_special_tokens = True
        self.chat_template = ChatTemplate(self._tokenizer)
        self._special_names = SpecialTokenEscaper(self._tokenizer)
        #: What decides about tokens, as one string: equal for equal tokenizers.
        self.tokenization: str = self._tokenizer.backend_tokenizer.to_str()
        rules = json.loads(self.tokenization)
        self.splits_at_words = _splits_at_words(rules)
        self._read_piece = token_text_reader(self._tokenizer, rules)

    @property
    def eos(self) -> int | None:
        """The token that the model puts behind a text, as its tokenizer names it."""
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    @property
    def start(self) -> Tokens:
        """What stands before an unprompted text: BOS, or EOS where a model has no BOS (GPT-2's custom), or nothing."""
        first = self._tokenizer.bos_token_id
        first = self._tokenizer.eos_token_id if first is None else first
        return () if first is None else (first,)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    @property
    def size(self) -> int:
        """Token ids are below this."""
        return len(self._tokenizer)

    @property
    def verbatim(self) -> HFTokenizer:
        """The same tokenizer, in whose texts special tokens show."""
        other = copy(self)
        other._skip_special_tokens = False
        return other

    def encode(self, text: str, *, special_tokens: bool) -> Tokens:
        """Token ids. `special_tokens` adds what the tokenizer puts around a text (BOS)."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=special_tokens))

    def encode_many(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of several texts, without special tokens."""
        if not texts:
            return []
        return [tuple(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def encode_chat(self, prompt: ChatPrompt) -> Tokens:
        """The conversation as the model reads it; names of special tokens in its messages are text. Raises RequestError
        where the template refuses."""
        cut, mark = self.cut(prompt)
        return self.encode_cut(self.chat_template.render(cut), mark, special_tokens=prompt.special_tokens)

    def cut(self, prompt: ChatPrompt) -> tuple[ChatPrompt, str | None]:
        """See `plain_text`: the conversation as it shall be rendered, and the mark at which to cut what comes of it."""
        return self._special_names.cut(prompt)

    def encode_cut(self, text: str, mark: str | None, *, special_tokens: bool) -> Tokens:
        """As `encode`, in parts that `mark` separates."""
        if mark is None:
            return self.encode(text, special_tokens=special_tokens)
        first, *others = text.split(mark)
        tokens = self.encode(first, special_tokens=special_tokens)
        guard = self._special_names.guard or ""  # before it: many tokenizers treat a text's beginning differently
        skipped = len(self.encode(guard, special_tokens=False))
        for other in others:
            tokens += self.encode(guard + other, special_tokens=False)[skipped:]
        return tokens

    def render_chat(self, prompt: ChatPrompt) -> str:
        """The conversation as the text that a provider turns into tokens itself: without the BOS that it then adds.
        Raises RequestError where the template refuses, and where a message holds the name of a special token."""
        if (name := self._special_names.found_in(prompt)) is not None:
            raise RequestError(
                f"`{name}` is a special token of this model, whose provider takes text: it would not stay text.",
                "messages",
            )
        text, bos = self.chat_template.render(prompt), self._tokenizer.bos_token
        adds_bos = self.encode("", special_tokens=True)[:1] == (self._tokenizer.bos_token_id,)
        return text.removeprefix(str(bos)) if bos and adds_bos else text

    def names(self, tokens: Sequence[int]) -> list[str]:
        """What the vocabulary calls these tokens; each id must be one of its own."""
        return [str(self._tokenizer.convert_ids_to_tokens(token)) for token in tokens]

    def is_special(self, token: int) -> bool:
        """Whether this token stands for no text, such as EOS."""
        added = self._tokenizer.added_tokens_decoder.get(token)
        return added is not None and bool(added.special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens, special tokens left out; bytes that are no character become U+FFFD."""
        skip = self._skip_special_tokens
        text = self._tokenizer.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        return str(text)

    def token_text(self, token: int) -> TokenText:
        """One token alone, as log-probabilities show it."""
        return self._read_piece(token)


def _splits_at_words(tokenizer: Mapping[str, Any]) -> bool:
    """Whether this is a byte-level BPE that ends a word wherever a letter, a space and a letter meet (GPT-2's rule,
    also behind a splitting of digits), so that the two sides of that space are encoded apart."""
    before = tokenizer["pre_tokenizer"] or {}
    parts = before.get("pretokenizers", [before])
    return (
        tokenizer["model"]["type"] == "BPE"
        and not tokenizer["normalizer"]
        and all(part.get("type") in ("Digits", "ByteLevel") for part in parts)
        and any(part.get("use_regex") and not part.get("add_prefix_space") for part in parts)
        and not any(" " in token["content"] for token in tokenizer["added_tokens"])
    )
