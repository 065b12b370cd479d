"""GGUF to a transformers folder: `python -m w2s_core.demo.convert FILE.gguf FOLDER`. Run as a process of its own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig, PreTrainedModel

from w2s_core.demo.fetch import say

# Files are private to their owner when safetensors writes them; a model folder may be shared or mounted read-only.
FILE_MODE = 0o644


def convert(gguf: Path, folder: Path) -> None:
    """Writes `folder`: the model dequantized to bfloat16, its tokenizer, and the tokens that end an answer."""
    say(f"converting {gguf.name} to bfloat16 safetensors")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    ends = _save_tokenizer(gguf, folder)
    # The chat turn ends with <|im_end|>, a plain document with <|endoftext|>: both finish an answer.
    # A new object: one marked as derived from the model's config would be derived again, with one end only.
    config = model.config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id, eos_token_id=ends, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    _check_saved(model, folder)
    for path in folder.iterdir():
        path.chmod(FILE_MODE)


def _save_tokenizer(gguf: Path, folder: Path) -> list[int]:
    """Saves the tokenizer and returns the ids of the tokens that end a text."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF names the splitting rule ("smollm") instead of holding it, and transformers does not know that name:
    # SmolLM2 splits off every digit before the byte-level rule, which shows in "  2" and in "\n 2".
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)
    make_portable(folder, context=8192)
    return [tokenizer.get_vocab()[token] for token in ("<|im_end|>", "<|endoftext|>")]


def make_portable(folder: Path, context: int) -> None:
    """Rewrites a saved tokenizer's settings to what holds anywhere; `context` is the model's length in tokens."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):  # about one machine and library version, not the model
        settings.pop(key, None)
    # The class by its old name, which other servers know too; and decode() must give back exactly what was encoded.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = context
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_saved(model: PreTrainedModel, folder: Path) -> None:
    """Refuses a folder whose weights are not bit for bit those that were dequantized."""
    saved = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in model.state_dict().items() if name in saved}
    tied = set(model.state_dict()) - set(saved)
    if tied - {"lm_head.weight"} or not all(torch.equal(saved[name], weight) for name, weight in kept.items()):
        raise SystemExit(f"the weights saved in {folder} are not those that were converted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.folder)


if __name__ == "__main__":
    main()
