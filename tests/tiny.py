"""Tiny random models of several families, and their tokenizers: equality tests run on them in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 300
BOS, EOS = 256, 257
THINK, END_THINK = 258, 259
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "initializer_range": 0.3,  # wide, so that random models have opinions
}
_DECODER: dict[str, Any] = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(**_DECODER),
    "qwen2": Qwen2Config(**_DECODER),
    "qwen3": Qwen3Config(**_DECODER),
    "mistral": MistralConfig(**_DECODER, sliding_window=8),
    "gemma2": Gemma2Config(**_DECODER, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**_DECODER, sliding_window=8, query_pre_attn_scalar=8),
    "olmo2": Olmo2Config(**{k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "gpt2": GPT2Config(**_COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=512),
}


def tiny_model(family: str = "llama", seed: int = 0, *, vocabulary: int = VOCABULARY, **sizes: int) -> PreTrainedModel:
    """Random weights, float32, two layers of width 32; `vocabulary` is the size of its embedding and its logits.

    `sizes` are other values of its configuration.
    """
    torch.manual_seed(seed)
    config = deepcopy(FAMILIES[family])
    config.vocab_size = vocabulary
    for name, size in sizes.items():
        setattr(config, name, size)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def tiny_classifier(family: str = "llama", seed: int = 0, labels: Sequence[str] = ("reward",)) -> PreTrainedModel:
    """As `tiny_model`, with a sequence-classification head of these outputs."""
    torch.manual_seed(seed)
    config = deepcopy(FAMILIES[family])
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return model.eval()


def byte_tokenizer(
    template: str | None = None, *, pairs: bool = False, size: int = VOCABULARY, thinks: bool = False
) -> PreTrainedTokenizerFast:
    """One token a byte, then <bos>, <eos> and fillers up to `size`; `pairs` makes some letters merge, so that more text
    can change the tokens of the text before. `thinks`: THINK and END_THINK are tokens, as in Qwen 3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["ab", "bc", "cd", "da", "abcd"] if pairs else []
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("b", "c"), ("d", "a")] if pairs else []
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {m: 258 + i for i, m in enumerate(merged)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    fillers = [f"<extra{i}>" for i in range(size - 258 - len(merged))]
    tokenizer.add_tokens(["<think>", "</think>", *fillers[2:]] if thinks else fillers)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", chat_template=template
    )


def _sentencepiece_model() -> tuple[models.BPE, int]:
    """BPE with byte fallback and the ids of `byte_tokenizer`: bytes, then <s> and </s>; then letters and merges."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [
        "<s>",
        "</s>",
        "<unk>",
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("\u2581", "the"),
        ("\u2581", "a"),
        ("\u2581", "c"),
        ("a", "t"),
        ("\u2581c", "at"),
    ]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True), len(pieces)


def sentencepiece_tokenizer(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece, with as many tokens as the tiny models have.

    "llama": as Llama 2, Mistral and Zephyr, a space is put before a text, and taken away from a decoded sequence.
    "gemma": as Gemma, nothing is put before it. "metaspace": as T5, with the `Metaspace` pre-tokenizer and decoder.
    """
    model, size = _sentencepiece_model()
    tokenizer = Tokenizer(model)
    space = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    elif kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.decoder = decoders.Sequence(space)
    else:
        assert kind == "llama"
        spaces = normalizers.Replace(" ", "\u2581")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
        tokenizer.decoder = decoders.Sequence([*space, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.add_tokens([f"<extra{i}>" for i in range(VOCABULARY - size)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: a word's continuation is written `##ing`, and decoding puts spaces between words."""
    pieces = ["[UNK]", "<s>", "</s>", "the", "cat", "sat", "a", ".", ",", "##s", "##ting", "##a", "##t"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def save_tiny(
    folder: Path,
    *,
    family: str = "llama",
    seed: int = 0,
    template: str | None = TEMPLATE,
    pairs: bool = False,
    context_length: int = 512,
    vocabulary: int = VOCABULARY,
    tokens: int = VOCABULARY,
    sentencepiece: str | None = None,
    thinks: bool = False,
) -> Path:
    """A folder that `from_pretrained` loads, with `vocabulary` embeddings and logits, and `tokens` in its tokenizer."""
    model = tiny_model(family, seed, vocabulary=vocabulary)
    model.config.max_position_embeddings = context_length
    model.save_pretrained(folder)
    if sentencepiece is None:
        byte_tokenizer(template, pairs=pairs, size=tokens, thinks=thinks).save_pretrained(folder)
    else:
        sentencepiece_tokenizer(sentencepiece, template).save_pretrained(folder)
    return folder


def save_tiny_classifier(
    folder: Path,
    *,
    family: str = "llama",
    seed: int = 0,
    labels: Sequence[str] = ("reward",),
    template: str | None = TEMPLATE,
    pairs: bool = False,
    context_length: int = 512,
) -> Path:
    """As `save_tiny`, with a sequence-classification head of these outputs."""
    classifier = tiny_classifier(family, seed, labels)
    classifier.config.max_position_embeddings = context_length
    classifier.save_pretrained(folder)
    byte_tokenizer(template, pairs=pairs).save_pretrained(folder)
    return folder
