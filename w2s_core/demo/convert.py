"""Converts a GGUF file to a transformers folder: `python -m w2s_core.demo.convert FILE.gguf FOLDER`.

It needs torch, so `demo.models` runs it in a process of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig, PreTrainedModel

from w2s_core.demo.fetch import say

# safetensors writes files that only their owner can read, but a model folder may be shared or mounted read-only.
FILE_MODE = 0o644


def convert(gguf: Path, folder: Path) -> None:
    """Writes `folder`: the model dequantized to bfloat16, its tokenizer, and its EOS tokens."""
    say(f"converting {gguf.name} to bfloat16 safetensors")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    ends = _save_tokenizer(gguf, folder)
    # A chat turn ends with <|im_end|>, a plain document with <|endoftext|>, so both are EOS tokens. This needs a new
    # object: one that is marked as derived from the model's config would be derived again, with one EOS token only.
    config = model.config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id, eos_token_id=ends, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    _check_saved(model, folder)
    for path in folder.iterdir():
        path.chmod(FILE_MODE)


def _save_tokenizer(gguf: Path, folder: Path) -> list[int]:
    """Saves the tokenizer and returns the ids of its EOS tokens."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF holds only the name of the pre-tokenizer ("smollm"), which transformers does not know. SmolLM2 splits off
    # every digit before the byte-level rule, which makes a difference in "  2" and in "\n 2".
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)
    make_portable(folder, context=8192)
    return [tokenizer.get_vocab()[token] for token in ("<|im_end|>", "<|endoftext|>")]


def make_portable(folder: Path, context: int) -> None:
    """Removes machine-specific settings from a saved tokenizer; `context` is the model's context length in tokens."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):  # specific to a machine and a library version
        settings.pop(key, None)
    # The old class name, which other servers know, too. And decode() must return exactly what was encoded.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = context
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_saved(model: PreTrainedModel, folder: Path) -> None:
    """Exits unless the saved weights are bit for bit the dequantized ones."""
    saved = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in model.state_dict().items() if name in saved}
    tied = set(model.state_dict()) - set(saved)
    if tied - {"lm_head.weight"} or not all(torch.equal(saved[name], weight) for name, weight in kept.items()):
        raise SystemExit(f"the weights saved in {folder} differ from the converted ones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.folder)


if __name__ == "__main__":
    main()
