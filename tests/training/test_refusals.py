"""`w2s pair train` with data and models that cannot be used: one line, exit code 2, and no file is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import psutil
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from safetensors.torch import load_file

from server.cli import main
from tests.adapters import save_adapter
from tests.tiny import save_tiny
from tests.training.conftest import Write, comparisons
from w2s_core.training import run as training_run
from w2s_core.training.models import BaseModel
from w2s_core.training.run import train_pair
from w2s_core.training.settings import TrainingSettings


def train(base: str, data: str, out: Path, *more: str, method: str = "sft") -> Result:
    arguments = ["--base", base, "--data", data, "--out", str(out), "--method", method, "--batch-size", "4"]
    return CliRunner().invoke(main, ["pair", "train", *arguments, *more])


def assert_refused(found: Result, message: str, out: Path) -> None:
    assert message in found.stderr
    assert (found.exit_code, len(found.stderr.splitlines())) == (2, 1), found.output
    assert not out.exists()


CHAT = [{"role": "user", "content": "Hi"}]
ANSWER = [{"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("records", "method", "message"),
    [
        ([], "sft", "there are no answers in it."),
        ([{"text": "a", "label": True}, {"text": "b", "label": True}], "sft", "all answers are good."),
        ([{"text": "a", "label": False}], "sft", "all answers are bad."),
        ([{"text": "a", "label": True}, {"text": "b"}], "sft", "line 2: label: must be in every record or in none."),
        ([{"completion": "a", "label": True}], "sft", "line 1: prompt: is missing; there is `completion`, `label`."),
        ([{"prompt": "a"}], "sft", "line 1: completion: is missing; there is `prompt`."),
        ([{"text": "a"}], "dpo", "--method dpo needs comparisons: records with `chosen` and `rejected`."),
        ([{"text": "\ud800", "label": True}], "sft", "line 1: has half of a surrogate pair"),
        (
            [{"prompt": "x", "chosen": "a" * 600, "rejected": "b"}],
            "dpo",
            "line 1: prompt and answer have 602 tokens, and",
        ),
        (
            [{"prompt": CHAT, "completion": ANSWER}, {"prompt": "x", "completion": "a"}],
            "sft",
            "line 2: prompt: is a text in some records and a list of messages in others.",
        ),
    ],
)
def test_data_that_cannot_be_used(
    base: str, write: Write, tmp_path: Path, records: Any, method: str, message: str
) -> None:
    assert_refused(train(base, write(*records), tmp_path / "out", method=method), message, tmp_path / "out")


def test_a_hub_that_cannot_be_reached(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, as the hub's client has it once it is imported: without a network it tries for 20 seconds."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = train(base, "nobody/nothing", tmp_path / "out")
    assert_refused(found, "nobody/nothing: cannot be loaded as a data set: ", tmp_path / "out")


def test_a_base_that_cannot_be_used(base: str, write: Write, tmp_path: Path) -> None:
    data, out = write(*comparisons()), tmp_path / "out"
    assert_refused(train(str(tmp_path / "missing"), data, out), "w2s: --base: no such folder: ", out)
    assert_refused(train(base, data, out, "--large", "./gone"), "w2s: --large: no such folder: ./gone.", out)
    (tmp_path / "empty").mkdir()
    assert_refused(train(str(tmp_path / "empty"), data, out), "empty: cannot load a fast tokenizer", out)
    adapter = str(save_adapter(tmp_path / "adapter", Path(base)))
    assert_refused(train(adapter, data, out), f"--base: {adapter} is an adapter, and no model.", out)
    small = str(save_tiny(tmp_path / "small", vocabulary=280))
    message = "has 300 tokens, and the model knows only 280; it must be the model's own."
    assert_refused(train(small, data, out), message, out)
    silent = str(save_tiny(tmp_path / "silent", template=None))
    chats = write({"prompt": CHAT, "chosen": ANSWER, "rejected": ANSWER})
    assert_refused(train(silent, chats, out), "the base model has no chat template; set --prompt-template.", out)


def test_a_base_with_pickled_weights_alone(base: str, write: Write, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(base, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    found = train(str(pickled), write(*comparisons()), tmp_path / "out")
    assert_refused(found, "--base: " + str(pickled) + " cannot be loaded: ", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--lora --saved-dtype float16",
            "--saved-dtype: has no effect here: --lora writes adapters, which stay in float32",
        ),
        ("--beta 0.2", "--beta: has no effect here: is for --method dpo."),
        ("--adapt-learning-rate 1", "--adapt-learning-rate: has no effect here: is for --adapt-epochs."),
        ("--held-out 0.2 --check-data DATA", "--held-out: has no effect here: --check-data is there for the figures."),
        ("--learning-rate nan", "--learning-rate: must be a number, not nan."),
        ("--prompt-template {promt}", "--prompt-template: must contain {prompt}, or be empty for nothing."),
        ("--split test", "--split: has no effect here: only a data set has splits, not a file."),
    ],
)
def test_options_without_effect(base: str, write: Write, tmp_path: Path, flags: str, message: str) -> None:
    data, out = write(*comparisons()), tmp_path / "out"
    assert_refused(train(base, data, out, *flags.replace("DATA", data).split()), message, out)


def test_data_at_a_url(base: str, tmp_path: Path) -> None:
    url = "https://example.org/data.jsonl"
    message = f"w2s: {url}: is a URL. Download it, and name the file."
    assert_refused(train(base, url, tmp_path / "out"), message, tmp_path / "out")


@pytest.mark.parametrize("option", ["--base", "--large"])
def test_a_demo_model_that_does_not_exist(base: str, write: Write, tmp_path: Path, option: str) -> None:
    data, out = write(*comparisons()), tmp_path / "out"
    found = train(base, data, out, option, "demo:nobody")
    assert_refused(found, f"w2s: {option}: there is no demo model 'demo:nobody'; the demo models are demo:", out)


@pytest.mark.parametrize("option", ["--epochs", "--adapt-epochs"])
def test_at_most_a_thousand_epochs(base: str, tmp_path: Path, option: str) -> None:
    data, out = str(tmp_path / "none.jsonl"), tmp_path / "out"
    found = train(base, data, out, option, "1001")
    assert (found.exit_code, out.exists()) == (2, False)
    assert f"Invalid value for '{option}': 1001 is not in the range" in found.stderr
    assert_refused(train(base, data, out, option, "1000"), "none.jsonl: cannot be read", out)


@pytest.mark.parametrize("adapt", [0, 1])
def test_a_training_that_diverges(base: str, write: Write, tmp_path: Path, adapt: int) -> None:
    out = tmp_path / "out"
    rates = ["--adapt-epochs", "1", "--adapt-learning-rate", "1e-3"] if adapt else []
    found = train(base, write(*comparisons()), out, *rates, "--learning-rate", "1e30", "--epochs", "3")
    assert found.exit_code == 2, found.output
    assert found.stderr.endswith("w2s: the training diverged: its loss is no longer a number. Lower --learning-rate.\n")
    kept = {path.name for path in (out / ".training").iterdir() if path.is_dir()} if out.exists() else set()
    assert kept == ({"adapt"} if adapt else set()), "phases that have ended stay, and no others"


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_training_whose_last_step_overflows_has_diverged(
    base: str, write: Write, tmp_path: Path, method: str
) -> None:
    """Its losses are finite, since they are those before the step."""
    options = ["--learning-rate", "1e15", "--epochs", "1", "--batch-size", "12"]
    found = train(base, write(*comparisons()), tmp_path / "out", *options, method=method)
    assert found.stderr.endswith(
        "w2s: the training diverged: its model's logits are no longer a number. Lower --learning-rate.\n"
    )
    assert found.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_weights_that_overflow_in_the_dtype_of_the_files(
    base: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(self: BaseModel, *_: Any) -> Any:
        model = load(self, None, None)
        with torch.no_grad():
            model.get_input_embeddings().weight[0, 0] = 1e6
        return model

    load = BaseModel.load
    monkeypatch.setattr(BaseModel, "load", huge)
    found = train(base, write(*comparisons()), tmp_path / "out", "--epochs", "1", "--saved-dtype", "float16")
    assert found.exit_code == 2, found.output
    assert "w2s: --saved-dtype: weights overflow in float16." in found.stderr


def test_one_step_trains(settings: Callable[..., TrainingSettings]) -> None:
    found = train_pair(settings(epochs=1, batch_size=24, held_out=0.5))
    assert found is not None
    assert found.verdict != "equal"


def test_an_output_folder_that_cannot_be(base: str, write: Write, tmp_path: Path) -> None:
    data = write(*comparisons())
    found = train(base, data, Path(data) / "out")
    assert_refused(found, f"--out: {data}/out cannot be written: Not a directory", Path(data) / "out")


def test_not_enough_memory(base: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write(*comparisons()), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e5))
        assert_refused(train(base, data, out), "not enough memory: training ", out)

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training_run, "_train", out_of_memory)
    assert_refused(
        train(base, data, out), "not enough memory for this training. Use --lora, a smaller --batch-size", out
    )


def test_a_folder_that_is_taken(base: str, write: Write, tmp_path: Path) -> None:
    data = write(*comparisons())
    found = train(base, data, tmp_path)
    assert (found.exit_code, (tmp_path / "data.jsonl").exists()) == (2, True)
    assert f"--out: {tmp_path} exists and is not empty; name another folder." in found.stderr
    work = tmp_path / "out" / ".training"
    work.mkdir(parents=True)
    with FileLock(work / "lock"):
        found = train(base, data, tmp_path / "out")
    assert found.exit_code == 2
    assert f"--out: another training writes to {tmp_path / 'out'}." in found.stderr


def test_check_data_that_is_too_long_is_told_before_the_training(base: str, write: Write, tmp_path: Path) -> None:
    data, check = write(*comparisons()), tmp_path / "check.jsonl"
    check.write_text('{"prompt": "x", "chosen": "' + "a" * 600 + '", "rejected": "b"}\n', encoding="utf-8")
    found = train(base, data, tmp_path / "out", "--check-data", str(check))
    assert_refused(found, "check.jsonl, line 1: prompt and answer have 602 tokens", tmp_path / "out")


@pytest.mark.parametrize(
    "message", ["not enough memory: you tried to allocate", "DefaultCPUAllocator: can't allocate memory"]
)
def test_no_memory_in_a_later_phase_loses_nothing(
    base: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    data, out = write(*comparisons()), tmp_path / "out"

    def adapts_alone(runner: Any, *_: Any) -> None:
        (runner._work / "adapt").mkdir()
        (runner._work / "adapt/model.safetensors").touch()
        raise RuntimeError(message)

    monkeypatch.setattr(training_run, "_train", adapts_alone)
    found = train(base, data, out)
    assert found.exit_code == 2
    assert "not enough memory for this training." in found.stderr
    assert (out / ".training/adapt").is_dir()
