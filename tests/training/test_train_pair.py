"""Trainings of tiny models: what tuned and untuned are, the files that are written, and a training that goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from server.settings.config import load_settings
from tests.training.conftest import Write, comparisons
from w2s_core.config import PairConfig
from w2s_core.errors import ConfigurationError
from w2s_core.training import phases
from w2s_core.training.run import train_pair
from w2s_core.training.settings import TrainingSettings

Make = Callable[..., TrainingSettings]
FILES = {"tuned", "untuned", "README.md", "w2s.yaml"}


def weights(folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_pair_that_knows_good_answers_it_has_not_seen(settings: Make, method: str) -> None:
    made = settings(method=method)
    check = train_pair(made)
    assert check is not None
    assert check.accuracy is not None
    assert check.accuracy.mean == 1
    assert (check.answers, check.verdict) == (16, "too few")
    assert "length_penalty" not in (made.out / "w2s.yaml").read_text(encoding="utf-8")
    assert {path.name for path in made.out.iterdir()} == FILES
    assert check.auc.mean == 1


def test_dpo_keeps_its_reference_as_the_untuned_model(settings: Make, base: str) -> None:
    made = settings(method="dpo", epochs=1, held_out=0.0)
    assert train_pair(made) is None
    assert equal(weights(made.out / "untuned"), weights(base))
    assert not equal(weights(made.out / "tuned"), weights(base))


def test_sft_without_bad_answers_takes_the_base_as_untuned(settings: Make, base: str, write: Write) -> None:
    made = settings(data=write(*({"text": f"aabb{i}"} for i in range(8))), epochs=1)
    assert train_pair(made) is None
    assert equal(weights(made.out / "untuned"), weights(base))
    assert "This was not measured" in (made.out / "README.md").read_text(encoding="utf-8")


def test_sft_trains_untuned_as_long_on_the_bad_answers(settings: Make, write: Write) -> None:
    made = settings(epochs=1, held_out=0.0)
    exchanged = [{**record, "chosen": record["rejected"], "rejected": record["chosen"]} for record in comparisons()]
    train_pair(made)
    other = settings(epochs=1, held_out=0.0, data=write(*exchanged), out=made.out.with_name("exchanged"))
    train_pair(other)
    assert equal(weights(made.out / "tuned"), weights(other.out / "untuned"))
    assert equal(weights(made.out / "untuned"), weights(other.out / "tuned"))


def test_adapters_of_a_pair_are_served_and_checked(settings: Make, base: str, write: Write) -> None:
    made = settings(lora=2, epochs=4, learning_rate=3e-2, data=write(*comparisons(60)))
    check = train_pair(made)
    assert check is not None
    assert check.verdict == "steers"
    assert {path.name for path in (made.out / "untuned").iterdir()} >= {"adapter_config.json", "tokenizer.json"}
    dpo = settings(lora=2, method="dpo", out=made.out.with_name("dpo"), held_out=0.0, epochs=1)
    train_pair(dpo)
    assert load_settings(dpo.out / "w2s.yaml").pairs["dpo"].untuned == base, "DPO's reference is the base itself"


def test_adaptation_reads_all_answers_and_moves_the_untuned_model(settings: Make, base: str) -> None:
    made = settings(method="dpo", epochs=1, adapt_epochs=1, adapt_learning_rate=1e-2, held_out=0.0)
    train_pair(made)
    assert not equal(weights(made.out / "untuned"), weights(base))


def test_the_same_seed_gives_the_same_pair(settings: Make, tmp_path: Path) -> None:
    made = [
        settings(out=tmp_path / name, seed=seed, epochs=1, held_out=0.0)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for each in made:
        train_pair(each)
    one, same, other = (weights(each.out / "tuned") for each in made)
    assert equal(one, same)
    assert not equal(one, other)


class Stopped(Exception):
    """As if the process were killed."""


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("lora", [None, 2])
def test_a_training_that_was_stopped_goes_on_where_it_was(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, lora: int | None
) -> None:
    options = {"method": method, "lora": lora, "held_out": 0.0, "embedding_dropout": 0.1, "adapt_epochs": 1}
    whole, made = settings(out=tmp_path / "whole", **options), settings(**options)
    train_pair(whole)
    monkeypatch.setattr(phases, "CHECKPOINT_SECONDS", 0.0)
    stops = iter([3, 15, 10**9])  # within the adaptation; within a later phase
    steps = count_steps(monkeypatch, stops)
    for _ in range(2):
        with pytest.raises(Stopped):
            train_pair(made)
    assert [path.name for path in made.out.iterdir()] == [".training"]
    with pytest.raises(ConfigurationError, match=r"in `epochs` \(was 2, is 9\), `seed` \(was 0, is 9\)\. Remove"):
        train_pair(settings(**options, seed=9, epochs=9))
    moved = made.out.rename(tmp_path / "moved")
    made = replace(made, out=moved, large="some/model")  # neither decides what is trained
    train_pair(made)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    for role in ("tuned", "untuned"):
        assert equal(load_file(made.out / role / name), load_file(whole.out / role / name)), role
    assert {path.name for path in made.out.iterdir()} == FILES
    assert len(steps) == len(set(steps)), "a step was taken twice"


def count_steps(monkeypatch: pytest.MonkeyPatch, stops: Any) -> list[tuple[str, int]]:
    """Records the steps that are taken, (phase, step), and raises Stopped after as many as `stops` says in each run."""
    taken: list[tuple[str, int]] = []
    real = phases._TimedCheckpoints.on_step_begin
    limit = {"steps": next(stops)}

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if len(taken) == limit["steps"]:
            limit["steps"] = next(stops)
            raise Stopped
        taken.append((Path(args.output_dir).name, state.global_step))
        return real(self, args, state, control, **more)

    monkeypatch.setattr(phases._TimedCheckpoints, "on_step_begin", on_step_begin)
    return taken


def test_a_checkpoint_that_was_not_written_to_its_end_is_left_out(tmp_path: Path) -> None:
    for step, content in ((5, "{}"), (10, "{}"), (15, '{"half'), (20, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if content is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content, encoding="utf-8")
    assert phases._last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert phases._last_checkpoint(tmp_path / "missing") is None


def test_the_configuration_serves_the_pair_and_the_card_says_how_it_was_made(settings: Make) -> None:
    made = settings(saved_dtype="float16", large="some/model")
    check = train_pair(made)
    assert check is not None
    found = load_settings(made.out / "w2s.yaml")
    assert found.pairs["pair"] == PairConfig(
        str(made.out / "tuned"), str(made.out / "untuned"), prompt_template="{prompt}"
    )
    guided = found.served_models["large-pair"].guidance
    assert guided is not None
    assert guided.pairs == {"pair": 1.0}
    assert weights(made.out / "tuned")["model.norm.weight"].dtype == torch.float16
    card = (made.out / "README.md").read_text(encoding="utf-8")
    for text in ("32 answers trained on, 16 held out", f"AUC                               {check.auc.mean:.3f}"):
        assert text in card
    shown = yaml.safe_load(card.rpartition("```yaml")[2].rpartition("```")[0])
    assert shown["learning_rate"] == 1e-2


def test_a_conversation_needs_no_template_where_the_base_has_one(settings: Make, write: Write) -> None:
    ask = [{"role": "user", "content": "Hi"}]
    records = [
        {"prompt": ask, "chosen": [said("aabb")], "rejected": [said("ddcc")]},
        {"chosen": [*ask, said("aab")], "rejected": [*ask, said("ddc")]},
    ]
    made = settings(data=write(*records * 10), method="dpo", epochs=1)
    train_pair(made)
    assert load_settings(made.out / "w2s.yaml").pairs["pair"].prompt_template is None


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_dropout_acts_on_embeddings_in_training_alone(base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    phases.add_dropout(model, 0.5)
    tokens = torch.arange(20)
    embedding = model.get_input_embeddings()
    model.train()
    zeros = (embedding(tokens) == 0).float().mean()
    with torch.no_grad():
        reference = embedding(tokens)  # of DPO with adapters: the same model without them
    model.eval()
    assert 0.3 < zeros < 0.7
    assert not (reference == 0).any()
    assert not (embedding(tokens) == 0).any()


def test_epochs_are_of_answers_and_not_of_batches(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(monkeypatch, iter([10**9]))
    train_pair(settings(epochs=3, batch_size=16, held_out=0.0))  # 24 good answers: 72 of them in batches of 16
    assert len(steps) == 2 * 5


def test_unbalanced_data_is_told(settings: Make, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(*({"text": "aab" if i else "ddc", "label": i > 0} for i in range(9)))
    train_pair(settings(data=data, epochs=1, held_out=0.0))
    assert (
        "warning: 8 good and 1 bad answers: both models get 2 steps, so that untuned sees each bad answer 8.0 times"
        in (capsys.readouterr().err)
    )


def test_the_configuration_serves_from_any_working_directory(
    settings: Make, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(method="dpo", lora=2, epochs=1, held_out=0.0)
    monkeypatch.chdir(made.out.parent)
    train_pair(replace(made, out=Path("pair"), base=os.path.relpath(base)))
    found = load_settings(made.out / "w2s.yaml").pairs["pair"]
    assert (found.tuned, found.untuned) == (str(made.out / "tuned"), base)
    assert json.loads((made.out / "tuned/adapter_config.json").read_text())["base_model_name_or_path"] == base
