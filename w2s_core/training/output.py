"""Writes a trained pair: its models, its model card, and the configuration that serves it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from w2s_core.config import PairConfig
from w2s_core.demo.convert import FILE_MODE
from w2s_core.errors import ConfigurationError
from w2s_core.pairs.check import PairCheck
from w2s_core.pairs.report import summary
from w2s_core.training.data import TrainingData
from w2s_core.training.models import BaseModel
from w2s_core.training.settings import TUNED, UNTUNED, TrainingSettings

CARD, CONFIG = "README.md", "w2s.yaml"
_METHODS = {
    "sft": "supervised fine-tuning (SFT)",
    "dpo": "direct preference optimization (DPO, Rafailov et al. 2023, arXiv:2305.18290)",
}
_CARD = """\
# The pair `{name}`

Two language models for weak-to-strong search, trained by `w2s pair train`. For an answer y to a prompt x,
log π_tuned(y|x) − log π_untuned(y|x) measures how much it is like the good answers of the data.

- **Base**: `{base}`, {parameters:.1f} M parameters{lora}.
- **Data**: `{data}`, {trained} answers trained on{held_out} (SHA-256 of the answers: `{digest}`).
- **Method**: {method}. *Tuned* {tuned}. *Untuned* {untuned}.
- **What the pair reads before the answer** (`prompt_template`): `{template}`.

Serve it with `w2s serve --config {config}`.

## How well it tells good answers from bad ones

{figures}

## Settings

```yaml
{settings}```
"""


@dataclass(frozen=True, slots=True)
class PairOutput:
    """The files of a trained pair. `template` is its `prompt_template`."""

    settings: TrainingSettings
    base: BaseModel
    template: str | None

    @property
    def name(self) -> str:
        """The pair's name in the configuration: that of its folder."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", self.settings.out.resolve().name).strip("-") or "pair"

    @property
    def _base(self) -> str:
        """The base as another folder's files name it: a local one by its whole path."""
        path = Path(self.settings.base)
        return str(path.resolve()) if path.is_dir() else self.settings.base

    @property
    def _config(self) -> str:
        """The configuration's path, for a shell."""
        return shlex.quote(str(self.settings.out / CONFIG))

    def write_models(self, folder: Path, tuned: Path, untuned: Path | None) -> None:
        """Writes `folder`/tuned and, unless it is the base of an adapter, `folder`/untuned (None: the base)."""
        self._write_model(tuned, folder / TUNED)
        if untuned is not None or self.settings.lora is None:
            self._write_model(untuned, folder / UNTUNED)

    def pair(self, folder: Path) -> PairConfig:
        """The configuration of the pair that lies in `folder`."""
        untuned = folder / UNTUNED
        written = untuned.exists() or self.settings.lora is None
        return PairConfig(str(folder / TUNED), str(untuned) if written else self._base, prompt_template=self.template)

    def write_texts(self, folder: Path, data: TrainingData, check: PairCheck | None) -> None:
        """Writes the model card and the configuration beside the models in `folder`."""
        (folder / CARD).write_text(self._card(data, check), encoding="utf-8")
        out = self.settings.out.resolve()
        untuned = str(out / UNTUNED) if (folder / UNTUNED).exists() else self._base
        content = {
            "large_models": {"large": {"model": self.settings.large}},
            "pairs": {self.name: {"tuned": str(out / TUNED), "untuned": untuned, "prompt_template": self.template}},
            "served_models": {
                "large": {"large": "large"},
                f"large-{self.name}": {
                    "large": "large",
                    "guidance": {"pairs": {self.name: 1.0}, **_guidance(check)},
                },
            },
        }
        text = f"# w2s serve --config {self._config}\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")

    def _write_model(self, source: Path | None, folder: Path) -> None:
        if self.settings.lora is None:
            dtype: torch.dtype = getattr(torch, self.settings.saved_dtype)
            model = self.base.load(source, None).to(dtype)  # type: ignore[arg-type]
            if not all(weights.isfinite().all() for weights in model.parameters()):
                raise ConfigurationError(f"--saved-dtype: weights overflow in {self.settings.saved_dtype}.")
            model.save_pretrained(str(folder))
        else:
            assert source is not None
            shutil.copytree(source, folder)
            (folder / CARD).unlink(missing_ok=True)  # PEFT's empty one
            path = folder / "adapter_config.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            content["base_model_name_or_path"] = self._base
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        self.base.new_tokenizer().save_pretrained(folder)
        for path in folder.iterdir():
            path.chmod(FILE_MODE)

    def _card(self, data: TrainingData, check: PairCheck | None) -> str:
        settings = self.settings
        shown = {key: value for key, value in asdict(settings).items() if key not in ("out", "large")}
        tuned, untuned = _roles(settings, data)
        return _CARD.format(
            name=self.name,
            base=settings.base,
            parameters=self.base.parameters / 1e6,
            lora=f", LoRA adapters of rank {settings.lora}" if settings.lora else "",
            data=settings.data,
            trained=f"{len(data.training):,}",
            held_out=f", {len(data.held_out):,} held out" if check else "",
            digest=data.digest[:16],
            method=_METHODS[settings.method],
            tuned=tuned,
            untuned=untuned,
            template="null" if self.template is None else self.template or '""',
            config=self._config,
            figures=f"```\n{summary(check)}\n```" if check else "This was not measured: no labelled data was held out.",
            settings=yaml.safe_dump(shown, sort_keys=False, allow_unicode=True),
        )


def _roles(settings: TrainingSettings, data: TrainingData) -> tuple[str, str]:
    """What the two models are, in words."""
    start = "the base trained on all answers" if settings.adapt_epochs else "the base"
    if settings.method == "dpo":
        return f"is {start}, trained to prefer the chosen answers", f"is its reference model, {start}"
    tuned = f"is {start}, trained on the good answers"
    if all(answer.good for answer in data.training):
        return tuned, f"is {start}"
    return tuned, (
        f"is {start}, trained for as many steps on the bad answers, so that only what sets good answers apart is left "
        "in the difference"
    )


def _guidance(check: PairCheck | None) -> dict[str, Any]:
    """Guidance to begin with: brakes, and the length penalty with which the pair tells most."""
    brakes = {"beam_width": 4, "successors": 4, "chunk_length": 5, "repetition": 1.0, "early_stopping": True}
    if check is None or check.verdict == "too few" or not check.length_penalty:
        return brakes
    return brakes | {"length_penalty": check.length_penalty}
