"""`w2s pair check` on tiny random models: text, JSON, and errors with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from server.cli import main
from server.commands import pair_check
from tests.adapters import save_adapter, save_merged
from tests.tiny import save_tiny
from w2s_core.config import WorkersConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: str(save_tiny(root / name, seed=seed)) for seed, name in enumerate(("tuned", "untuned"))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    records = [{"prompt": "Say", "chosen": f" yes {i} and more", "rejected": f" no {i}"} for i in range(10)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["pair", "check", *arguments])


def test_models_by_their_folders(folders: dict[str, str], data: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    pair = ["--tuned", folders["tuned"], "--untuned", folders["untuned"], "--prompt-template", "{prompt}"]
    found = run(*pair, "--data", data, "--json", "--plot", str(plot))
    assert found.exit_code == 0, found.output
    content = json.loads(found.stdout)
    assert content["answers"] == 20
    assert 0 <= content["accuracy"] <= 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    exchanged = ["--tuned", folders["untuned"], "--untuned", folders["tuned"], "--prompt-template", "{prompt}"]
    other = json.loads(run(*exchanged, "--data", data, "--json").stdout)
    assert other["accuracy"] == pytest.approx(1 - content["accuracy"])
    assert other["auc"] == pytest.approx(1 - content["auc"])


def test_a_pair_of_the_configuration(folders: dict[str, str], data: str, tmp_path: Path) -> None:
    config = tmp_path / "w2s.yaml"
    pairs = {"equal": {"tuned": folders["tuned"], "untuned": folders["tuned"], "prompt_template": ""}}
    content = {"large_models": {"large": {"model": folders["tuned"]}}, "served_models": {"m": {"large": "large"}}}
    config.write_text(yaml.safe_dump(content | {"pairs": pairs}), encoding="utf-8")
    found = run("--pair", "equal", "--config", str(config), "--data", data)
    assert found.exit_code == 0, found.output
    assert "Are they the same model?" in found.stdout
    missing = run("--pair", "other", "--config", str(config), "--data", data)
    assert missing.exit_code == 2
    assert missing.stderr == "w2s: --pair: no pair is named `other` (configured: equal).\n"


@pytest.mark.parametrize("option", ["--tuned", "--untuned"])
def test_a_demo_model_that_does_not_exist(data: str, option: str) -> None:
    pair = {"--tuned": "demo:reviews-positive", "--untuned": "demo:reviews-negative"} | {option: "demo:nobody"}
    found = run(*(part for item in pair.items() for part in item), "--data", data)
    assert (found.exit_code, len(found.stderr.splitlines())) == (2, 1)
    assert found.stderr.startswith(f"w2s: {option}: there is no demo model 'demo:nobody'; the demo models are demo:")


def test_an_adapter_by_its_folder_alone(
    folders: dict[str, str], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "auto" is bfloat16 on some CPUs, where a merged weight is rounded once more.
    monkeypatch.setattr(pair_check, "WorkersConfig", lambda: WorkersConfig(dtype="float32"))
    adapter = save_adapter(tmp_path / "adapter", Path(folders["untuned"]))
    merged = save_merged(tmp_path / "merged", Path(folders["untuned"]), adapter)
    found = []
    for tuned in (adapter, merged):
        result = run("--tuned", str(tuned), "--untuned", folders["untuned"], "--data", data, "--json")
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
    assert found[0]["margin"] == pytest.approx(found[1]["margin"], abs=1e-4)
    assert (found[0]["auc"], found[0]["verdict"]) == (found[1]["auc"], found[1]["verdict"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    missing = run("--tuned", str(adapter), "--untuned", folders["untuned"], "--data", data)
    assert missing.exit_code == 2
    assert missing.stderr.startswith(f"w2s: pairs.pair.tuned: the base of the adapter {adapter}: no such folder: ")
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a pair by --tuned and --untuned, or one of the configuration by --pair."),
        (["--tuned", "x", "--pair", "y"], "--pair: is configured; leave out --tuned, --untuned and --prompt-template."),
        (["--tuned", "x", "--prompt-template", "Q: prompt"], "--prompt-template: must contain {prompt}, or be empty"),
        (["--prompt-template", "{prompt}", "--pair", "y"], "--pair: is configured; leave out --tuned"),
        (["--tuned", "x", "--config", "y"], "--config: is only for a pair that --pair names."),
        (["--tuned", "./x"], "--tuned: no such folder: ./x."),
        (["--tuned", "x", "--untuned", "/x"], "--untuned: no such folder: /x."),
        (["--tuned", "x", "--plot", "/nowhere/plot.png"], "--plot: no such folder: /nowhere."),
        (["--tuned", "x"], "cannot be read: No such file or directory"),
    ],
)
def test_mistakes_have_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    found = run(*arguments, "--data", "missing.jsonl")
    assert found.exit_code == 2
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_no_answer_fits(folders: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    records = [{"prompt": "x " * 5000, "completion": "y", "label": label} for label in (True, False)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    pair = ["--tuned", folders["tuned"], "--untuned", folders["untuned"], "--prompt-template", "{prompt}"]
    found = run(*pair, "--data", str(path))
    assert found.exit_code == 2
    assert "no good and bad answers are left, because 2 do not fit the pair's context." in found.stderr
