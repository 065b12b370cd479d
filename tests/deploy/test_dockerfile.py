"""The Dockerfile: linted, its contents checked and its steps run in a folder (no container engine runs here)."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from tests.deploy.image import ROOT, Player, stages

HADOLINT = Path(sys.executable).with_name("hadolint")


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True, check=False)


def test_the_linter_finds_nothing(tmp_path: Path) -> None:
    assert hadolint(ROOT / "Dockerfile").stdout == ""
    worse = tmp_path / "Dockerfile"
    worse.write_text((ROOT / "Dockerfile").read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in hadolint(worse).stdout, "the linter does look"


def test_the_image_runs_as_nobody_in_particular_and_writes_to_its_volume_only() -> None:
    *_, final = stages()
    user, _, group = final.one("USER").partition(":")
    assert int(user) > 0, "a number, so that Kubernetes can tell that it is not root"
    assert int(group) > 0
    [volume] = final.all("VOLUME")
    environment = final.environment
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
        assert environment[name].startswith(volume)
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    words = [step.word for step in final.steps]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
    assert environment["W2S_SERVER__HOST"] == "0.0.0.0", "a container is called from outside"
    assert environment["W2S_SERVER__PORT"] == final.one("EXPOSE")


def test_layers_dependencies_first_and_build_tools_left_behind() -> None:
    dependencies, wheel, final = stages()
    assert wheel.base == dependencies.name == "dependencies"
    assert not any("server" in value or "w2s_core" in value for value in dependencies.all("COPY"))
    assert final.all("COPY") == ["--from=dependencies /opt/w2s /opt/w2s"]
    assert final.base == dependencies.base
    installs = [run for run in dependencies.all("RUN") if "pip install" in run]
    assert len(installs) == 2
    assert all("-c constraints.txt" in run and "--no-cache-dir" in run for run in installs), "pinned, and small"


def test_what_the_build_copies_is_what_the_context_holds() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {name for stage in stages()[:2] for value in stage.all("COPY") for name in value.split()[:-1]}
    assert copied == allowed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*packages, project["project"]["readme"], *project["project"]["license-files"]} <= allowed


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    [choosing] = [run for run in stages()[0].all("RUN") if "VARIANT" in run]
    done = subprocess.run(
        ["sh", "-c", choosing], env=os.environ | {"VARIANT": "tpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "not tpu" in done.stderr
    nothing = subprocess.run(["/bin/sh", "-c", choosing], env={"VARIANT": "cuda", "PATH": ""}, check=False)
    assert nothing.returncode == 0, "CUDA is PyPI's own build, which comes with the other dependencies"


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in needed} - {"pip"}  # comes with Python
    assert not [name for name in names if not pinned & {name, name.replace("-", "_")}]


@pytest.mark.slow
def test_the_steps_build_a_server_that_answers(tmp_path: Path) -> None:
    player = Player(tmp_path, {"VARIANT": "cpu", "TORCH_CPU_INDEX": ""})
    for stage in stages():
        player.play(stage)
    *_, final = stages()
    declared = {name: player.place(value) for name, value in final.environment.items()}
    declared["PATH"] = f"{tmp_path}/opt/w2s/bin:{os.environ['PATH']}"
    declared["W2S_SERVER__HOST"] = "127.0.0.1"
    home = Path(declared["HOME"])
    home.mkdir(parents=True)
    run = lambda *command: subprocess.run(command, env=declared, cwd=home, capture_output=True, text=True, check=False)  # noqa: E731
    [entry, *arguments] = [*json.loads(final.one("ENTRYPOINT")), *json.loads(final.one("CMD"))]
    assert (entry, arguments) == ("w2s", ["serve"])

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    torch = run("python", "-c", "import torch, server, w2s_core; print(torch.__version__, server.__file__)").stdout
    assert torch.startswith(pins["torch"])
    assert str(tmp_path) in torch, "the installed one, not the checkout's"
    assert run("pip", "check").returncode == 0
    before = written(tmp_path / "opt")
    health = re.search(r"CMD (\[.*\])", final.one("HEALTHCHECK"))[1]
    declared["W2S_SERVER__PORT"] = "0"
    with subprocess.Popen([entry, *arguments], env=declared, cwd=home, stderr=-1, text=True) as serving:
        try:
            line = next(line for line in serving.stderr if line.startswith("Listening at"))
            declared["W2S_SERVER__PORT"] = re.search(r":(\d+);", line)[1]
            checked = run(*json.loads(health))
            assert checked.returncode == 0, checked.stderr
            page = httpx.get(f"http://127.0.0.1:{declared['W2S_SERVER__PORT']}/playground/main.js")
            assert page.status_code == 200, "the wheel holds the files of the playground"
        finally:
            serving.terminate()
            serving.communicate(timeout=60)
    assert run(*json.loads(health)).returncode != 0, "nobody listens any more"
    assert written(tmp_path / "opt") == before, "a read-only root file system is enough"


def written(folder: Path) -> set[tuple[str, int]]:
    """Files and when they were changed."""
    files = (path for path in folder.rglob("*") if not fnmatch.fnmatch(path.name, "*.pyc"))
    return {(str(path), path.lstat().st_mtime_ns) for path in files}
